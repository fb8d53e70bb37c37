"""Export of the trained model as a Hugging Face folder at the end of training."""

from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from callbacks.outputs import require_module, run_folder
from vr1.checkpoints.export import gathered_weights, package_of, write_model
from vr1.checkpoints.model_card import model_card
from vr1.errors import UserError
from vr1.modules.base import DetectionModule
from vr1.strategies import shards_weights


class Export(Callback):
    """Write the trained model, processor and chat template when training ends, for ``from_pretrained``.

    Of a model with adapters only the adapters are written. ``python -m vr1 export`` does the same for a checkpoint, and
    merges adapters into the weights. Weights that are sharded over processes are gathered one by one in the memory of
    the first process's host.

    Args:
        dirname: folder to write; relative to the run's folder unless absolute.
        dtype: precision of the written weights; None takes that of the training.

    Raises:
        UserError: ``dtype`` is not a floating-point type of torch, or the module is not one of vr1.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from callbacks import Export
        >>> trainer = Trainer(callbacks=[Export(dtype="bfloat16")], logger=False)

    """

    def __init__(self, dirname: Path = Path("model"), dtype: str | None = None) -> None:
        if dtype is not None and not getattr(getattr(torch, dtype, None), "is_floating_point", False):
            raise UserError(f"Export: dtype={dtype!r} is not a floating-point type of torch; try 'bfloat16'")
        self.dirname, self.dtype, self._folder = Path(dirname), dtype, Path()

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        require_module(self, pl_module, DetectionModule)
        self._folder = run_folder(trainer) / self.dirname

    @override
    def on_fit_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        assert isinstance(pl_module, DetectionModule)
        # Reading a metric may reduce it over the processes, so all of them read.
        run = pl_module.run()
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        policy = pl_module.policy
        weights = gathered_weights(policy.network, self.dtype) if shards_weights(trainer.strategy) else None
        if trainer.is_global_zero:
            package = package_of(policy.network)
            card = model_card(run, trainer.global_step, adapters=policy.has_adapters, package=package)
            write_model(policy.network, pl_module.processor, self._folder, self.dtype, card, weights)
