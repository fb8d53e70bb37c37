"""``python -m vr1 plan``: what a training will take of memory, before it is paid for."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vr1.runs.tables import markdown_table

if TYPE_CHECKING:
    from vr1.commands.plan.predict import MemoryPlan

_GIB = 2**30
_COLUMNS = ("rollout", "policy", "update")


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: the words after ``python -m vr1 plan``: those of ``vr1 fit``, and ``--gpu``.

    Returns:
        The exit status: 0, 1 where the training does not fit, 2 for a user's mistake, which is told in one line.
    """
    own, words = _parser().parse_known_args(argv)
    # Here, so that --help does not wait for torch.
    from vr1.commands.plan.fit import changes, usable
    from vr1.commands.plan.needs import needs_of
    from vr1.commands.plan.predict import predict

    try:
        room = usable(own.gpu) if own.gpu else None
        needs = needs_of(words)
        prediction = predict(needs)
        print(table(prediction))
        if room is None:
            return 0
        if prediction.peak <= room:
            print(f"fits: {_gib(prediction.peak)} of the {_gib(room)} GiB that tensors can take on {own.gpu}")
            return 0
        print(
            f"does not fit: {_gib(prediction.peak)} GiB, and tensors can take {_gib(room)} on {own.gpu}; first change"
        )
        for change, changed in changes(needs):
            peak = predict(changed).peak
            print(f"  {change}: {_gib(peak)} GiB{', fits' if peak <= room else ''}", flush=True)
            if peak <= room:
                return 1
        print("  not enough, all together: take a smaller model, a larger GPU, or more (configs/fsdp_8xa100.yaml)")
    except (ValueError, OSError) as error:
        print(f"vr1 plan: error: {error}", file=sys.stderr)
        return 2
    return 1


def table(prediction: "MemoryPlan") -> str:
    """The parts of a prediction, GiB at each moment of a step, as Markdown."""
    moments, worst = prediction.moments, prediction.worst
    parts = list(dict.fromkeys(part for moment in moments.values() for part in moment))
    counts = prediction.parameters
    head = ["GiB of each process", *(f"{moment}{' (peak)' * (moment == worst)}" for moment in _COLUMNS)]
    rows = [[part, *(_gib(moments[moment].get(part, 0.0)) for moment in _COLUMNS)] for part in parts]
    rows.append(["all", *(_gib(sum(moments[moment].values())) for moment in _COLUMNS)])
    said = f"{counts['all']:,} parameters, {counts['trained']:,} trained"
    return f"{said}; rows of up to {prediction.row_tokens:,} tokens\n\n{markdown_table(head, rows)}\n"


def _gib(size: float) -> str:
    return f"{size / _GIB:.2f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vr1 plan",
        allow_abbrev=False,
        description="Predict the memory of a training from the words that `vr1 fit` would be given: by part, at the"
        " three moments of a step, and whether it fits. No weights are loaded. Images are taken at policy.max_pixels,"
        " completions at sampling.max_new_tokens: what a run takes at worst.",
        epilog="All other words are those of `vr1 fit`: vr1 plan --config FILE --model.sampling.group_size 16",
    )
    parser.add_argument("--gpu", help="the accelerator it has to fit on: a100-40gb, a100-80gb, h100, h200, 24gb, ...")
    return parser
