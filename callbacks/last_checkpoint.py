"""LastCheckpoint.

Leave every training with a checkpoint to resume from.
"""

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from callbacks.outputs import run_folder


class LastCheckpoint(Checkpoint):
    """Save ``checkpoints/last.ckpt`` in the run's folder after every validation, and when training ends.

    There is one file, which is replaced. For several of them, or the best by a metric, use Lightning's
    ``ModelCheckpoint(save_last=True)`` instead. ``python -m vr1 fit`` adds this callback where a configuration has
    neither.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from callbacks import LastCheckpoint
        >>> trainer = Trainer(callbacks=[LastCheckpoint()], logger=False)

    """

    def __init__(self) -> None:
        self._folder = Path()
        self._saved = -1

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        self._folder = run_folder(trainer) / "checkpoints"

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self._saved = trainer.global_step

    @override
    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._save(trainer)

    @override
    def on_train_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self._save(trainer)

    def _save(self, trainer: "pl.Trainer") -> None:
        if trainer.global_step != self._saved and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self._folder / "last.ckpt")
            self._saved = trainer.global_step
