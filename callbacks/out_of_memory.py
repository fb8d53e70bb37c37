"""Out-of-memory advice.

Say which setting to lower, where torch only says how many bytes it could not get.
"""

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from vr1.memory_advice import is_out_of_memory, memory_advice


class OutOfMemoryAdvice(Callback):
    """Add to an out-of-memory error what to change, by the part of the step in which it was raised.

    The advice is a note of the exception: the last line of its traceback. ``python -m vr1`` ends with it alone.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from callbacks import OutOfMemoryAdvice
        >>> trainer = Trainer(callbacks=[OutOfMemoryAdvice()], logger=False)

    """

    @override
    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        if is_out_of_memory(exception):
            meter = getattr(pl_module, "meter", None)
            part = meter.part if trainer.training and meter is not None else "evaluation"
            exception.add_note(memory_advice(part))
