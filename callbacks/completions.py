"""Completions.

Read what the model writes while it learns: answers side by side with the boxes in them, what they earn, and how they
compare within their group.
"""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from callbacks.findings import findings_of
from callbacks.overlay import boxes_overlay
from vr1.detections import read_detections
from vr1.experience import JudgedGroups
from vr1.families import Family
from vr1.records import DetectionRecord, Detections, Finding


class Completions(Callback):
    """Log tables of completions to Weights & Biases: image with boxes, prompt, answer, reward terms, advantage.

    ``completions/train`` has all answers of a few groups that were just sampled, ``completions/val`` the first answers
    of each validation (without an advantage: those are not compared). Boxes are Weights & Biases' own overlay, so they
    can be switched on and off and filtered there. Without a ``WandbLogger`` the callback does nothing.

    Args:
        every_n_steps: log sampled groups at every n-th optimizer step; 0 leaves them out.
        num_prompts: groups in a table, all their answers with them.
        num_validation: answers of a validation in its table; 0 leaves them out.

    Note:
        With several processes these are the completions of rank zero.

    Raises:
        ValueError: if a setting is negative, or ``num_prompts`` is 0.
        TypeError: if ``validation_step`` returns something else than a list of :class:`~vr1.records.Finding`.

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
                raise ValueError(f"Completions: {name} is {value}: give at least {least}")
        self.every_n_steps, self.num_prompts, self.num_validation = every_n_steps, num_prompts, num_validation
        self._findings: list[Finding] = []
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
        judged: JudgedGroups | None = getattr(pl_module, "judged", None)
        loggers = _loggers(trainer)
        if judged is None or not loggers:
            return
        shown = range(min(self.num_prompts, len(judged)))
        rows = [row for index in shown for row in _group(judged, index, pl_module.family)]  # type: ignore[arg-type]
        _log(loggers, "completions/train", rows, list(judged.terms), step)

    @override
    def on_validation_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self._findings = []

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
        if len(self._findings) < self.num_validation and _loggers(trainer):
            self._findings += findings_of(self, outputs)[: self.num_validation - len(self._findings)]

    @override
    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        loggers = _loggers(trainer)
        if loggers and self._findings and trainer.state.fn == TrainerFn.FITTING:
            terms = [name for name in self._findings[0].rewards if name != "total"]
            rows = [_validated(finding, terms) for finding in self._findings]
            _log(loggers, "completions/val", rows, terms, trainer.global_step)
        self._findings = []


def _loggers(trainer: "pl.Trainer") -> list[WandbLogger]:
    found = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    return found if trainer.is_global_zero else []


def _group(judged: JudgedGroups, index: int, family: Family) -> list[list[Any]]:
    """The rows of one prompt's answers."""
    record, size = judged.records[index], judged.input_sizes[index]
    return [
        [
            _image(record, read_detections(text, family, record.image_size, size)),
            judged.instructions[index],
            text,
            float(judged.rewards[index, answer]),
            *(float(values[index, answer]) for values in judged.terms.values()),
            float(judged.advantages[index, answer]),
        ]
        for answer, text in enumerate(judged.texts[index])
    ]


def _validated(finding: Finding, terms: Sequence[str]) -> list[Any]:
    rewards = finding.rewards
    image = _image(finding.record, finding.detections)
    return [image, finding.instruction, finding.completion, rewards["total"], *(rewards[name] for name in terms), None]


def _image(record: DetectionRecord, detections: Detections) -> Any:
    # Imported where it is used: it takes a second, and most runs have no such logger.
    import wandb

    return wandb.Image(record.image, boxes=boxes_overlay(record, detections))


def _log(loggers: Sequence[WandbLogger], key: str, rows: list[list[Any]], terms: Sequence[str], step: int) -> None:
    columns = ["image", "prompt", "answer", "reward", *terms, "advantage"]
    for logger in loggers:
        logger.log_table(key, columns=columns, data=rows, step=step)
