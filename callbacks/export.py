"""Export: the trained model as an ordinary Hugging Face folder."""

from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from callbacks.outputs import run_folder
from vr1.checkpoints.export import write_model
from vr1.checkpoints.model_card import model_card
from vr1.errors import UserError
from vr1.modules.base import DetectionModule
from vr1.strategies import FullySharded


class Export(Callback):
    """Write the trained model, processor and chat template when training ends, to load by ``from_pretrained``.

    With adapters, these alone are written. ``python -m vr1 export`` does the same with a checkpoint, and merges them.

    Args:
        dirname: folder to write; relative to the run folder unless absolute.
        dtype: precision of the written weights; None keeps the one trained in.

    Raises:
        UserError: the precision is no floating-point type of torch, the module is none of vr1, or the model is
            divided among processes.

    Example:
        >>> Export(dtype="bfloat16").dirname
        PosixPath('model')
    """

    def __init__(self, dirname: Path = Path("model"), dtype: str | None = None) -> None:
        if dtype is not None and not getattr(getattr(torch, dtype, None), "is_floating_point", False):
            raise UserError(f"Export: dtype={dtype!r} is no floating-point type of torch; try 'bfloat16'")
        self.dirname, self.dtype, self._folder = Path(dirname), dtype, Path()

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        if isinstance(trainer.strategy, FullySharded):
            raise UserError(
                "Export: no process has the whole model with trainer.strategy fully_sharded; leave the callback out,"
                " and run `python -m vr1 export --ckpt ... --out ...` with a checkpoint"
            )
        if not isinstance(pl_module, DetectionModule):
            raise UserError(
                f"Export writes the policy of a module of vr1, and {type(pl_module).__name__} is none: leave the"
                " callback out"
            )
        self._folder = run_folder(trainer) / self.dirname

    @override
    def on_fit_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        assert isinstance(pl_module, DetectionModule)
        # Reading the metrics may make the processes exchange results, so every one of them reads.
        run = pl_module.run()
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            network = pl_module.policy.network
            card = model_card(run, trainer.global_step, adapters=pl_module.policy.has_adapters)
            write_model(network, pl_module.processor, self._folder, self.dtype, card)
