"""Completions in Weights & Biases: tables of sampled answers with their boxes, rewards and advantages."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from typing_extensions import override

from callbacks.outputs import predictions_of
from vr1.errors import UserError
from vr1.modules.state import HasTrainingState
from vr1.types import Boxes, DetectionRecord, Detections, Prediction, ScoredGroups


def wandb_boxes(
    record: DetectionRecord, detections: Detections, advantages: Mapping[str, NDArray[np.float64]] | None = None
) -> dict[str, Any]:
    """True and predicted boxes as an overlay of Weights & Biases.

    Args:
        record: the image and its true boxes, in pixels of the image.
        detections: the predicted boxes, in pixels of the image.
        advantages: by name ``[N]`` advantages of the boxes; None if boxes have none of their own.

    Returns:
        The ``boxes`` of ``wandb.Image``: the groups ``ground_truth`` and ``predictions``, of which the latter have
        ``scores`` to filter by: ``score`` and the advantages. A group without a box is left out, since wandb does not
        accept it.

    Example:
        >>> from vr1.drawing.boxes import example_prediction
        >>> prediction = example_prediction()
        >>> boxes = wandb_boxes(prediction.record, prediction.detections)
        >>> sorted(boxes), boxes["ground_truth"]["box_data"][0]["box_caption"]
        (['ground_truth', 'predictions'], 'red circle')
    """
    names = list(dict.fromkeys((*record.categories, *record.labels, *detections.labels)))
    groups = {
        "ground_truth": _boxes(record.boxes_xyxy, record.labels, names),
        "predictions": _boxes(detections.boxes_xyxy, detections.labels, names),
    }
    scores = {"score": detections.scores, **(advantages or {})}
    for row, box in enumerate(groups["predictions"]):
        box["scores"] = {name: float(values[row]) for name, values in scores.items()}
    shown = {group: boxes for group, boxes in groups.items() if boxes}
    return {group: {"box_data": boxes, "class_labels": dict(enumerate(names))} for group, boxes in shown.items()}


def _boxes(boxes: Boxes, labels: Sequence[str], names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "position": dict(zip(("minX", "minY", "maxX", "maxY"), map(float, box), strict=True)),
            "domain": "pixel",
            "class_id": names.index(label),
            "box_caption": label,
        }
        for box, label in zip(boxes, labels, strict=True)
    ]


class Completions(Callback):
    """Log tables of completions to Weights & Biases: image with boxes, prompt, answer, reward terms, advantage.

    ``completions/train`` has all answers of some groups of the newest rollout, ``completions/val`` the first answers of
    each validation, which have no advantage. The boxes are an overlay of Weights & Biases, so they can be switched on
    and off and filtered there. Without a ``WandbLogger`` the callback does nothing; a module without rollouts, such as
    :class:`~vr1.modules.sft.SFTModule`, has no ``completions/train``.

    Args:
        every_n_steps: log sampled groups at every n-th optimizer step; 0 never does.
        num_prompts: number of groups in a table.
        num_validation: number of answers in the table of a validation; 0 writes no table.

    Note:
        With several processes these are the completions of rank zero.

    Raises:
        UserError: a setting is negative, or ``num_prompts`` is 0.
        TypeError: ``validation_step`` does not return a list of :class:`~vr1.types.Prediction`.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from callbacks import Completions
        >>> trainer = Trainer(callbacks=[Completions(every_n_steps=50)], logger=False)

    """

    def __init__(self, every_n_steps: int = 50, num_prompts: int = 4, num_validation: int = 16) -> None:
        for name, value, least in (
            ("every_n_steps", every_n_steps, 0),
            ("num_prompts", num_prompts, 1),
            ("num_validation", num_validation, 0),
        ):
            if value < least:
                raise UserError(f"Completions: {name} is {value}: give at least {least}")
        self.every_n_steps, self.num_prompts, self.num_validation = every_n_steps, num_prompts, num_validation
        self._predictions: list[Prediction] = []
        self._last_step = 0

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self._last_step = trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if not self.every_n_steps or step == self._last_step or step % self.every_n_steps:
            return
        self._last_step = step
        loggers = _loggers(trainer)
        if not loggers or not isinstance(pl_module, HasTrainingState):
            return
        scored = pl_module.training_state.scored_groups
        if scored is None:
            return
        shown = range(min(self.num_prompts, len(scored)))
        rows = [row for index in shown for row in _group(scored, index)]
        _log(loggers, "completions/train", rows, list(scored.terms), step)

    @override
    def on_validation_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self._predictions = []

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
        if len(self._predictions) < self.num_validation and _loggers(trainer):
            self._predictions += predictions_of(self, outputs)[: self.num_validation - len(self._predictions)]

    @override
    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        loggers = _loggers(trainer)
        if loggers and self._predictions and trainer.state.fn == TrainerFn.FITTING:
            terms = [name for name in self._predictions[0].rewards if name != "total"]
            rows = [_validated(prediction, terms) for prediction in self._predictions]
            _log(loggers, "completions/val", rows, terms, trainer.global_step)
        self._predictions = []


def _loggers(trainer: "pl.Trainer") -> list[WandbLogger]:
    loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    return loggers if trainer.is_global_zero else []


def _group(scored: ScoredGroups, index: int) -> list[list[Any]]:
    """The rows of one prompt's answers."""
    first = index * len(scored.texts[index])
    advantages = {"box advantage": scored.box_advantages, "label advantage": scored.item_advantages}
    return [
        [
            _image(
                scored.records[index],
                scored.detections[first + answer],
                {name: values[first + answer] for name, values in advantages.items() if values is not None},
            ),
            scored.instructions[index],
            text,
            float(scored.rewards[index, answer]),
            *(float(values[index, answer]) for values in scored.terms.values()),
            float(scored.advantages[index, answer]),
        ]
        for answer, text in enumerate(scored.texts[index])
    ]


def _validated(prediction: Prediction, terms: Sequence[str]) -> list[Any]:
    rewards = prediction.rewards
    image = _image(prediction.record, prediction.detections)
    return [
        image,
        prediction.instruction,
        prediction.completion,
        rewards["total"],
        *(rewards[name] for name in terms),
        None,
    ]


def _image(
    record: DetectionRecord, detections: Detections, advantages: Mapping[str, NDArray[np.float64]] | None = None
) -> Any:
    # Not at the top: the import takes a second, and most runs have no such logger.
    import wandb

    return wandb.Image(record.image, boxes=wandb_boxes(record, detections, advantages))


def _log(loggers: Sequence[WandbLogger], key: str, rows: list[list[Any]], terms: Sequence[str], step: int) -> None:
    columns = ["image", "prompt", "answer", "reward", *terms, "advantage"]
    for logger in loggers:
        logger.log_table(key, columns=columns, data=rows, step=step)
