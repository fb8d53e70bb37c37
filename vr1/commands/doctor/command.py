"""``python -m vr1 doctor``: whether a training can run on this machine."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vr1.commands.doctor.checks import CheckResult


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: the arguments after ``python -m vr1 doctor``.

    Returns:
        The exit status: 0, or 1 if there is a fault that a training fails with.
    """
    _parser().parse_args(argv)
    # Imported here, so that --help does not wait for torch.
    from vr1.commands.doctor.checks import check_functions, check_machine, check_packages
    from vr1.commands.doctor.samplers import check_vllm

    results = _show("packages", check_packages())
    if any(result.state == "fault" for result in results):
        print("\nFix the packages first: the other checks need them.")
        return 1
    results += _show("machine", check_machine()) + _show("functions", check_functions())
    results += _show("samplers", [check_vllm()])
    count = {state: sum(result.state == state for result in results) for state in ("fault", "note")}
    print(f"\nfaults: {count['fault']}, notes: {count['note']}")
    return int(count["fault"] > 0)


def _show(title: str, results: "list[CheckResult]") -> "list[CheckResult]":
    print(f"\n{title}", *(f"  {result}" for result in results), sep="\n", flush=True)
    return results


def _parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog="vr1 doctor",
        allow_abbrev=False,
        description="Check versions, memory, disk and GPUs, and try 4-bit weights and the embedded model.",
    )
