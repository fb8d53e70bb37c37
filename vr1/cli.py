"""The command line: ``python -m vr1 fit|validate|test|predict|score``."""

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from vr1.data.datamodule import RecordDataModule
from vr1.detector import Detector
from vr1.score import main as score

_PACKAGE = Path(__file__).parent


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run one command.

    Args:
        argv: the words after ``python -m vr1``; None takes the process's own.

    Returns:
        The exit status, where the command has one: 2 for a user's mistake, which is told in one line.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["score"]:
        return score(words[1:])
    try:
        LightningCLI(
            Detector,
            RecordDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            parser_class=_Parser,
            parser_kwargs={"prog": "vr1"},
            args=None if argv is None else words,
        )
    except (ValueError, OSError) as error:
        if (ours := _told_by_us(error)) is None:
            raise
        print(f"vr1: error: {ours}", file=sys.stderr)
        return 2
    return None


class _Parser(LightningArgumentParser):
    """Tells a mistake in one line where one of our own checks found it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if ex is not None and (ours := _told_by_us(ex)) is not None:
            sys.stderr.write(f"vr1: error: {ours}\n")
            self.exit(2)
        super().error(message, ex)


def _told_by_us(error: BaseException) -> BaseException | None:
    """The error, or the one that it arose from, which our own checks raised: its text says all that a user needs.

    None where there is no such error: then only the traceback helps.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        frames = traceback.extract_tb(cause.__traceback__)
        if isinstance(cause, ValueError | OSError) and frames:
            origin = Path(frames[-1].filename)
            if origin.is_relative_to(_PACKAGE) or origin.parent.name == "callbacks":
                return cause
        cause = cause.__cause__ or cause.__context__
    return None
