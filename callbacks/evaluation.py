"""The files of an evaluation: answers, COCO results and ground truth, metrics, tables, best and worst images."""

import heapq
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image
from typing_extensions import override

from callbacks.outputs import RankedJsonlWriter, predictions_of, run_folder, write_picture
from vr1.distributed import gather
from vr1.drawing import draw_grid, draw_tile
from vr1.errors import UserError
from vr1.metrics.answer_file import ScoredCompletion, complete_lines, read_answer_lines, read_completions
from vr1.metrics.answer_schema import QuestionKey, RecordedAnswer, question_key
from vr1.metrics.evaluation import table_text, write_evaluation
from vr1.modules.base import DetectionModule
from vr1.prompts import PromptBatch
from vr1.types import Prediction

_Rank = tuple[float, int, str]


def quality(prediction: Prediction) -> float:
    """Quality of an answer: the summed overlap of the K matched pairs over ``max(N, M)``.

    N predicted and M true boxes: a missing box and a superfluous one count alike. 1 where N and M are 0.

    Args:
        prediction: one completion with its match.

    Example:
        >>> from vr1.drawing.boxes import example_prediction
        >>> quality(example_prediction(empty=True))
        0.0
    """
    match = prediction.match
    boxes = max(match.num_predicted, match.num_targets)
    return float(match.overlap.clip(min=0.0).sum()) / boxes if boxes else 1.0


class BestWorst:
    """The answers of highest and of lowest :func:`quality`; of equal ones, those with more true boxes.

    No more images are in memory than :meth:`tiles` draws.

    Args:
        size: number of best and of worst answers.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._best: dict[_Rank, Prediction] = {}
        self._worst: dict[_Rank, Prediction] = {}

    def add(self, predictions: Iterable[Prediction]) -> None:
        """Add answers; one that was added before (a distributed sampler repeats some) changes nothing."""
        for prediction in predictions:
            value, objects = quality(prediction), prediction.match.num_targets
            name = f"{prediction.record.origin} {prediction.record.image_id} {prediction.instruction}"
            self._best[-value, -objects, name] = self._worst[value, -objects, name] = prediction
        self._best, self._worst = self._first(self._best), self._first(self._worst)

    def tiles(self, side: int) -> tuple[list[Image.Image], list[Image.Image]]:
        """Tiles of the best and of the worst answers of all processes; call it on all of them.

        Args:
            side: of a tile, in pixels.

        Returns:
            Tiles of the best answers, the best first, and of the worst ones, the worst first.
        """
        own = [
            {rank: draw_tile(prediction, side) for rank, prediction in part.items()}
            for part in (self._best, self._worst)
        ]
        shares: Sequence[list[dict[_Rank, Image.Image]]] = gather(own)
        best, worst = ({rank: tile for share in shares for rank, tile in share[part].items()} for part in (0, 1))
        return [best[rank] for rank in sorted(best)[: self.size]], [worst[rank] for rank in sorted(worst)[: self.size]]

    def _first(self, ranked: dict[_Rank, Prediction]) -> dict[_Rank, Prediction]:
        return {rank: ranked[rank] for rank in heapq.nsmallest(self.size, ranked)}


_ANSWERS = "answers.jsonl"
_TILE = 360


class Evaluation(Callback):
    """Write the files of an evaluation for ``test`` and ``validate``, and print the table of its sets.

    The files are ``answers.jsonl``, ``results.json``, ``ground_truth.json``, ``metrics.json``, ``per_set.csv``,
    ``per_class.csv``, ``gallery/best.png`` and ``gallery/worst.png``. If the data have several sets (ODINW, mixtures,
    the splits of RefCOCO), each set is measured separately, and ``average`` is their mean.

    ``answers.jsonl`` grows with every batch. The same command resumes an interrupted evaluation: answered questions are
    not generated again, on any number of processes. Answers of another model, other settings or another resolution (see
    ``evaluation.json``) do not count, nor do those of a finished evaluation. ``python -m vr1 score --completions
    answers.jsonl --coco FOLDER`` makes the other files from the answers, without a model.

    Args:
        output_dir: folder of all files, created if missing; existing files of the same names are replaced. None takes
            ``evaluation`` in the run's folder.
        annotations: a COCO json with the category ids of ``results.json``, for tools that evaluate against that file.
            None numbers categories from 1.
        resume: resume an interrupted evaluation of the same model; False starts over.
        num_images: number of best and of worst images to draw; 0 draws none.

    Note:
        With several processes all of them must see ``output_dir``.

        ``test_step`` and ``validation_step`` must return lists of :class:`~vr1.types.Prediction`. Only the evaluation
        of a :class:`~vr1.modules.base.DetectionModule` can be resumed.

    Raises:
        UserError: the folder is not writable, ``annotations`` cannot be read, or ``num_images`` is negative.
        TypeError: a step returns something else than a list of predictions.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from callbacks import Evaluation
        >>> trainer = Trainer(callbacks=[Evaluation("my evaluation")], logger=False)

    """

    def __init__(
        self,
        output_dir: str | Path | None = None,
        annotations: str | Path | None = None,
        resume: bool = True,
        num_images: int = 8,
    ) -> None:
        if num_images < 0:
            raise UserError(f"Evaluation: num_images is {num_images}: give 0 (no gallery) or more")
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.category_ids = None if annotations is None else _category_ids(Path(annotations))
        self.resume, self.num_images = resume, num_images
        self._folder = Path()
        self._writer: RankedJsonlWriter | None = None
        self._known: dict[QuestionKey, ScoredCompletion] = {}
        self._best_worst = BestWorst(num_images)

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        if stage not in ("test", "validate"):
            return
        # On every process, also where output_dir is given: run_folder communicates between processes.
        default = run_folder(trainer) / "evaluation"
        self._folder = (self.output_dir or default).expanduser()
        self._writer = RankedJsonlWriter(self, self._folder / _ANSWERS, trainer.global_rank)

    @override
    def on_validation_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._begin(trainer, pl_module)

    @override
    def on_validation_batch_end(
        self,
        trainer: "pl.Trainer",
        pl_module: "pl.LightningModule",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._record(outputs, batch)

    @override
    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._finish(trainer)

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_end = on_validation_end

    @override
    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        self._close()
        if isinstance(pl_module, DetectionModule):
            pl_module.reuse_answers({})
        self._known = {}

    @override
    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        self._close()

    def _begin(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Read the recorded answers; not in ``setup``, where the checkpoint is not known yet."""
        assert self._writer is not None
        answers = self._writer.path
        trainer.strategy.barrier("Evaluation, folder")
        if trainer.is_global_zero:
            _prepare(self._folder, _identity(trainer, pl_module), self.resume)
        trainer.strategy.barrier("Evaluation, answers")
        self._known = read_completions(answers)
        trainer.strategy.barrier("Evaluation, start")
        self._writer.open()
        self._best_worst = BestWorst(self.num_images)
        if self._known and isinstance(pl_module, DetectionModule):
            pl_module.reuse_answers(self._known)
            rank_zero_info(f"Evaluation: resumes with {len(self._known)} answers of {answers}")

    def _record(self, outputs: Any, batch: Any) -> None:
        predictions = predictions_of(self, outputs)
        assert self._writer is not None
        for number, prediction in enumerate(predictions):
            record = prediction.record
            size = batch.input_sizes[number] if isinstance(batch, PromptBatch) else record.image_size
            if question_key(record, prediction.instruction, size) in self._known:
                continue
            answer = RecordedAnswer.from_record(
                record, prediction.detections, prediction.completion, prediction.instruction, size
            )
            self._writer.write(answer.to_json())
        self._best_worst.add(predictions)

    def _finish(self, trainer: "pl.Trainer") -> None:
        self._close()
        trainer.strategy.barrier("Evaluation")
        best, worst = self._best_worst.tiles(_TILE)
        self._best_worst = BestWorst(self.num_images)
        if not trainer.is_global_zero:
            return
        assert self._writer is not None
        self._writer.merge(trainer.world_size)
        rows = [line.answer for line in read_answer_lines(self._writer.path)]
        if not rows:
            return
        metrics = write_evaluation(self._folder, rows, self.category_ids)
        rank_zero_info(table_text(metrics))
        for name, tiles in (("best", best), ("worst", worst)):
            if tiles:
                sheet = draw_grid(tiles, f"{name} {len(tiles)} of {len(rows)} answers, by total reward")
                write_picture(trainer, self._folder, f"gallery/{name}.png", sheet, key=f"gallery/{name}")

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _prepare(folder: Path, identity: dict[str, Any], resume: bool) -> None:
    """Empty ``answers.jsonl``, except for the answers of an interrupted evaluation of the same identity."""
    # As json reads it: lists in place of tuples.
    current = json.loads(json.dumps(identity, default=str))
    about, finished, answers = folder / "evaluation.json", folder / "metrics.json", folder / _ANSWERS
    try:
        previous = json.loads(about.read_bytes())
    except (OSError, ValueError):
        previous = None
    resumes = identity and resume and not finished.exists() and previous == current
    parts = [answers, *sorted(folder.glob("answers.rank*.jsonl"))]
    written = folder / ".answers.jsonl.part"
    with written.open("w", encoding="utf-8") as file:
        file.writelines(complete_lines(parts if resumes else []))
    written.replace(answers)
    for part in parts[1:]:
        part.unlink()
    finished.unlink(missing_ok=True)
    about.write_text(json.dumps(current, indent=1), encoding="utf-8")


def _identity(trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> dict[str, Any]:
    """What answers depend on: settings, and size and time of the weights' files; empty for modules of other kinds."""
    if not isinstance(pl_module, DetectionModule):
        return {}
    values = pl_module.evaluation_settings()
    paths = [Path(values["policy"]["path"]), *([Path(trainer.ckpt_path)] if trainer.ckpt_path else [])]
    files = [file for path in paths for file in (path.glob("*.safetensors") if path.is_dir() else [path])]
    weights = {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()}
    return {**values, "weights": dict(sorted(weights.items()))}


def _category_ids(path: Path) -> dict[str, int]:
    """Category ids of a COCO json, by name."""
    try:
        return {item["name"]: item["id"] for item in json.loads(path.read_bytes())["categories"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"Evaluation: annotations is {str(path)!r}, whose categories cannot be read ({type(error).__name__}:"
            f" {error}): give a COCO json"
        ) from error
