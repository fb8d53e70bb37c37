"""What the console does not show: advertisements, and warnings that no user of a command can act on."""

import logging
import sys
import warnings
from typing import Any

from transformers.utils import logging as transformers_logging

# By the logger that writes them: how the messages begin.
_MESSAGES = {
    "lightning.pytorch.utilities.rank_zero": (
        "💡 Tip",
        "TPU available",
        "`Trainer.fit` stopped",
    ),
    "lightning.pytorch.trainer.connectors.checkpoint_connector": ("`weights_only` was not set",),
    "lightning.fabric.utilities.seed": ("Seed set to",),
}
# Regular expressions for the beginning of a warning.
_WARNINGS = (
    # Lightning's own code, on every batch of nested data.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # transformers' own code, with gradient checkpointing.
    r".*is_gradient_checkpointing",
    r".*gradient_checkpointing_enable",
    # On a laptop, fewer workers than cores are right: the cores are busy with the model.
    r"The '.*_dataloader' does not have many workers",
)


def quiet_console() -> None:
    """Leave out the messages and warnings above, and print every other warning in one line.

    Example:
        >>> with warnings.catch_warnings():
        ...     quiet_console()
        ...     print(warnings.formatwarning("the disk is nearly full", UserWarning, "a.py", 1), end="")
        vr1: warning: the disk is nearly full
    """
    for name, beginnings in _MESSAGES.items():
        logger = logging.getLogger(name)
        if not any(isinstance(item, _Without) for item in logger.filters):
            logger.addFilter(_Without(beginnings))
    for pattern in _WARNINGS:
        warnings.filterwarnings("ignore", pattern)
    warnings.formatwarning = _one_line
    if not sys.stderr.isatty():
        # In a file, each state of a bar would be a line.
        transformers_logging.disable_progress_bar()


class _Without(logging.Filter):
    """Drops the messages that begin in one of these ways."""

    def __init__(self, beginnings: tuple[str, ...]) -> None:
        super().__init__()
        self.beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.beginnings)


def _one_line(message: Warning | str, *_: Any, **__: Any) -> str:
    """A warning without the place in the code and the line of source that Python prints with it."""
    return f"vr1: warning: {message}\n"
