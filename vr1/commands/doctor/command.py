"""``python -m vr1 doctor``: whether a training can work here, before one is started."""

import argparse
from collections.abc import Sequence

from vr1.commands.doctor.checks import Observation


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: the words after ``python -m vr1 doctor``.

    Returns:
        The exit status: 0, or 1 where something was found that keeps a training from working.
    """
    _parser().parse_args(argv)
    # Here, so that --help does not wait for torch.
    from vr1.commands.doctor.checks import observe_packages

    found = _show("packages", observe_packages())
    if any(seen.state == "fault" for seen in found):
        print("\nThe packages first: the rest cannot be looked at before they are as they should be.")
        return 1
    from vr1.commands.doctor.checks import observe_machine, observe_trials

    found += _show("machine", observe_machine()) + _show("tried", observe_trials())
    count = {state: sum(seen.state == state for seen in found) for state in ("fault", "note")}
    print(f"\nfaults: {count['fault']}, notes: {count['note']}")
    return int(count["fault"] > 0)


def _show(title: str, found: list[Observation]) -> list[Observation]:
    print(f"\n{title}", *(f"  {seen}" for seen in found), sep="\n", flush=True)
    return found


def _parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog="vr1 doctor",
        allow_abbrev=False,
        description="Look at versions, memory, disk and GPUs, and try 4-bit weights and the embedded model.",
    )
