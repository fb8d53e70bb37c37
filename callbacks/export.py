"""Export: the trained model as an ordinary Hugging Face folder."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from callbacks.run_outputs import run_folder


class Export(Callback):
    """Write the trained model, processor and chat template when training ends, to load by ``from_pretrained``.

    Args:
        dirname: folder to write; relative to the run folder unless absolute.
        dtype: precision of the written weights; None keeps the one trained in.

    Raises:
        ValueError: the precision is no floating-point type of torch.

    Example:
        >>> Export(dtype="bfloat16").dirname
        PosixPath('model')
    """

    def __init__(self, dirname: Path = Path("model"), dtype: str | None = None) -> None:
        if dtype is not None and not getattr(getattr(torch, dtype, None), "is_floating_point", False):
            raise ValueError(f"Export: dtype={dtype!r} is no floating-point type of torch; try 'bfloat16'")
        self.dirname, self.dtype, self._folder = Path(dirname), dtype, Path()

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        self._folder = run_folder(trainer) / self.dirname

    @override
    def on_fit_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        if not trainer.is_global_zero:
            return
        network: Any = pl_module.policy.network  # type: ignore[union-attr]
        weights = network.state_dict()
        if self.dtype is not None:
            weights = {name: value.to(getattr(torch, self.dtype)) for name, value in weights.items()}
        network.save_pretrained(self._folder, state_dict=weights)
        pl_module.processor.save_pretrained(self._folder)  # type: ignore[operator, union-attr]
