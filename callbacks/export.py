"""Export: the trained model as an ordinary Hugging Face folder."""

from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from typing_extensions import override


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
        self.dirname, self.dtype = Path(dirname), dtype

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.log_dir or trainer.default_root_dir) / self.dirname
        network = pl_module.policy.network
        if self.dtype is not None:
            network = network.to(getattr(torch, self.dtype))
        network.save_pretrained(folder)
        pl_module.processor.save_pretrained(folder)
