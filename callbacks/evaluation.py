"""Evaluation.

Keep what ``test`` finds in the forms that others read: every answer, COCO's results and ground truth, all figures,
tables by set and by class, and the best and the worst images.
"""

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
    """How well the boxes lie: the overlaps of the matched pairs over the number of boxes, predicted or true.

    Whichever are more, so that missing and needless boxes cost alike; 1 where there is nothing, and nothing is found.

    Example:
        >>> from vr1.drawing.boxes import example_prediction
        >>> quality(example_prediction(empty=True))
        0.0
    """
    match = prediction.match
    boxes = max(match.num_predicted, match.num_targets)
    return float(match.overlap.clip(min=0.0).sum()) / boxes if boxes else 1.0


class BestWorst:
    """The answers of highest and of lowest `quality`; among equals, those with more true boxes.

    No more images are held than will be shown.

    Args:
        size: how many of each.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._best: dict[_Rank, Prediction] = {}
        self._worst: dict[_Rank, Prediction] = {}

    def add(self, predictions: Iterable[Prediction]) -> None:
        """Take in some answers; one that was seen before, as a distributed sampler repeats some, changes nothing."""
        for prediction in predictions:
            value, objects = quality(prediction), prediction.match.num_targets
            name = f"{prediction.record.origin} {prediction.record.image_id} {prediction.instruction}"
            self._best[-value, -objects, name] = self._worst[value, -objects, name] = prediction
        self._best, self._worst = self._first(self._best), self._first(self._worst)

    def tiles(self, side: int) -> tuple[list[Image.Image], list[Image.Image]]:
        """Drawings of the best and of the worst answers of all processes; to be called on all of them."""
        kept = [
            {rank: draw_tile(prediction, side) for rank, prediction in found.items()}
            for found in (self._best, self._worst)
        ]
        shares: Sequence[list[dict[_Rank, Image.Image]]] = gather(kept)
        best, worst = ({rank: tile for share in shares for rank, tile in share[part].items()} for part in (0, 1))
        return [best[rank] for rank in sorted(best)[: self.size]], [worst[rank] for rank in sorted(worst)[: self.size]]

    def _first(self, found: dict[_Rank, Prediction]) -> dict[_Rank, Prediction]:
        return {rank: found[rank] for rank in heapq.nsmallest(self.size, found)}


_ANSWERS = "answers.jsonl"
_TILE = 360


class Evaluation(Callback):
    """Write the files of an evaluation for ``test`` and ``validate``, and print the table of its sets.

    The files are ``answers.jsonl``, ``results.json``, ``ground_truth.json``, ``metrics.json``, ``per_set.csv``,
    ``per_class.csv``, ``gallery/best.png`` and ``gallery/worst.png``. Where the data have several sets (ODINW,
    mixtures, RefCOCO's splits), each is measured on its own, and ``average`` is their mean.

    ``answers.jsonl`` is written as answers come. An evaluation that was interrupted goes on where it was when the same
    command is given again: questions that are answered there are not asked again, on any number of processes. Answers
    of another model, other settings or another resolution (see ``evaluation.json``) do not count, nor do those of an
    evaluation that was finished. ``python -m vr1 score --completions answers.jsonl --coco FOLDER`` makes the other
    files from it, without a model.

    Args:
        output_dir: folder of all files, made if it is missing; files of the same names in it are replaced. None takes
            ``evaluation`` in the run's folder.
        annotations: a COCO json whose category ids ``results.json`` takes; needed to hand results to somebody who has
            that file. None numbers categories from 1.
        resume: go on with an interrupted evaluation of the same model; False begins anew.
        num_images: how many of the best and of the worst images to draw; 0 draws none.

    Note:
        With several processes ``output_dir`` must be a folder that all of them see.

        Requires that ``test_step`` and ``validation_step`` return lists of :class:`~vr1.types.Prediction`, and can
        resume only where the module is a :class:`~vr1.modules.base.DetectionModule`.

    Raises:
        UserError: if the folder cannot be written to, ``annotations`` cannot be read, or ``num_images`` is negative.
        TypeError: if a step returns something else.

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
        self._lines: RankedJsonlWriter | None = None
        self._known: dict[QuestionKey, ScoredCompletion] = {}
        self._extremes = BestWorst(num_images)

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        if stage not in ("test", "validate"):
            return
        # Asked on every process, also where the answer is not needed: the processes talk to each other over it.
        default = run_folder(trainer) / "evaluation"
        self._folder = (self.output_dir or default).expanduser()
        self._lines = RankedJsonlWriter(self, self._folder / _ANSWERS, trainer.global_rank)

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
            self._keep(outputs, batch)

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
        """Take up what is answered; not in ``setup``, where the checkpoint is not known yet."""
        assert self._lines is not None
        answers = self._lines.path
        trainer.strategy.barrier("Evaluation, folder")
        if trainer.is_global_zero:
            _take_up(self._folder, _made_by(trainer, pl_module), self.resume)
        trainer.strategy.barrier("Evaluation, answers")
        self._known = read_completions(answers)
        trainer.strategy.barrier("Evaluation, start")
        self._lines.open()
        self._extremes = BestWorst(self.num_images)
        if self._known and isinstance(pl_module, DetectionModule):
            pl_module.reuse_answers(self._known)
            rank_zero_info(f"Evaluation: goes on with the {len(self._known)} answers in {answers}")

    def _keep(self, outputs: Any, batch: Any) -> None:
        predictions = predictions_of(self, outputs)
        assert self._lines is not None
        for number, prediction in enumerate(predictions):
            record = prediction.record
            size = batch.input_sizes[number] if isinstance(batch, PromptBatch) else record.image_size
            if question_key(record, prediction.instruction, size) in self._known:
                continue
            answer = RecordedAnswer.from_record(
                record, prediction.detections, prediction.completion, prediction.instruction, size
            )
            self._lines.write(answer.to_json())
        self._extremes.add(predictions)

    def _finish(self, trainer: "pl.Trainer") -> None:
        self._close()
        trainer.strategy.barrier("Evaluation")
        best, worst = self._extremes.tiles(_TILE)
        self._extremes = BestWorst(self.num_images)
        if not trainer.is_global_zero:
            return
        assert self._lines is not None
        self._lines.merge(trainer.world_size)
        rows = [line.answer for line in read_answer_lines(self._lines.path)]
        if not rows:
            return
        found = write_evaluation(self._folder, rows, self.category_ids)
        rank_zero_info(table_text(found))
        for name, tiles in (("best", best), ("worst", worst)):
            if tiles:
                sheet = draw_grid(tiles, f"{name} {len(tiles)} of {len(rows)} answers")
                write_picture(trainer, self._folder, f"gallery/{name}.png", sheet, key=f"gallery/{name}")

    def _close(self) -> None:
        if self._lines is not None:
            self._lines.close()


def _take_up(folder: Path, made_by: dict[str, Any], resume: bool) -> None:
    """Leave in ``answers.jsonl`` what an interrupted evaluation of the same kind answered, else nothing."""
    # As it comes back from the file: tuples are lists there.
    described = json.loads(json.dumps(made_by, default=str))
    about, finished, answers = folder / "evaluation.json", folder / "metrics.json", folder / _ANSWERS
    try:
        before = json.loads(about.read_bytes())
    except (OSError, ValueError):
        before = None
    kept = made_by and resume and not finished.exists() and before == described
    parts = [answers, *sorted(folder.glob("answers.rank*.jsonl"))]
    written = folder / ".answers.jsonl.part"
    with written.open("w", encoding="utf-8") as file:
        file.writelines(complete_lines(parts if kept else []))
    written.replace(answers)
    for part in parts[1:]:
        part.unlink()
    finished.unlink(missing_ok=True)
    about.write_text(json.dumps(described, indent=1), encoding="utf-8")


def _made_by(trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> dict[str, Any]:
    """What the answers come from: settings, and size and time of the files of weights; nothing where nobody knows."""
    if not isinstance(pl_module, DetectionModule):
        return {}
    values = pl_module.evaluation_settings()
    places = [Path(values["policy"]["path"]), *([Path(trainer.ckpt_path)] if trainer.ckpt_path else [])]
    files = [file for place in places for file in (place.glob("*.safetensors") if place.is_dir() else [place])]
    weights = {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()}
    return {**values, "weights": dict(sorted(weights.items()))}


def _category_ids(path: Path) -> dict[str, int]:
    """COCO's category ids by name."""
    try:
        return {item["name"]: item["id"] for item in json.loads(path.read_bytes())["categories"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"Evaluation: annotations is {str(path)!r}, whose categories cannot be read ({type(error).__name__}:"
            f" {error}): give a COCO json"
        ) from error
