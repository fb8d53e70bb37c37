"""KL ceiling.

Notice that a policy runs away from its reference, before the rewards show it.
"""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override


class KLCeiling(Callback):
    """Warn when the KL to the reference is above a ceiling, and end training when it stays there.

    The run ends as one that is complete does: with its last checkpoint, export and tables.

    Args:
        ceiling: mean KL a token, in nats, above which it is too far.
        patience: end training after so many optimizer steps in a row above the ceiling; 0 only warns.
        monitor: the metric that is watched.

    Raises:
        ValueError: ``ceiling`` is not positive, ``patience`` is negative, or the metric is not logged.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from callbacks import KLCeiling
        >>> trainer = Trainer(callbacks=[KLCeiling(ceiling=0.5, patience=20)], logger=False)

    """

    def __init__(self, ceiling: float = 1.0, patience: int = 10, monitor: str = "grpo/kl") -> None:
        if not ceiling > 0:
            raise ValueError(f"KLCeiling: ceiling is {ceiling}: give a KL above 0, such as 1.0")
        if patience < 0:
            raise ValueError(f"KLCeiling: patience is {patience}: give 0 (only warn) or more optimizer steps")
        self.ceiling, self.patience, self.monitor = ceiling, patience, monitor
        self.above = 0
        self._step = 0

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self._step = trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if (logged := trainer.callback_metrics.get(self.monitor)) is None:
            raise ValueError(
                f"KLCeiling watches {self.monitor!r}, which is not logged: set model.loss.kl_coef above 0, so that"
                " there is a reference, or leave the callback out"
            )
        value = float(logged)
        # A KL that is no number is no longer below any ceiling.
        self.above = 0 if value <= self.ceiling else self.above + 1
        if self.above == 1:
            rank_zero_warn(
                f"{self.monitor} is {value:.3g} at step {self._step}, above the ceiling of {self.ceiling:g}: a lower"
                " learning rate or a higher model.loss.kl_coef keeps the policy nearer to its reference"
            )
        if self.patience and self.above >= self.patience:
            rank_zero_warn(
                f"training ends at step {self._step}: {self.monitor} was above {self.ceiling:g} for {self.above} steps"
                " in a row (KLCeiling.ceiling and .patience say how far is too far)"
            )
            trainer.should_stop = True

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"above": self.above}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.above = state_dict["above"]
