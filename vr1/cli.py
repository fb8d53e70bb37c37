"""The command line: ``python -m vr1 fit|validate|test|predict|score``."""

import sys
from collections.abc import Sequence

from lightning.pytorch.cli import LightningCLI

from vr1.data.datamodule import RecordDataModule
from vr1.detector import Detector


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run one command; returns its exit status where it has one."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["score"]:
        from vr1.score import main as score

        return score(argv[1:])
    LightningCLI(
        Detector,
        RecordDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},
        args=argv,
    )
    return None
