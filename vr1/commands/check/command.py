"""``python -m vr1 check --config ...``: read the full data set once, before training."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vr1.errors import report_user_error


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: the arguments after ``python -m vr1 check``: those of ``fit``, and ``--out``.

    Returns:
        The exit status: 0 if nothing is wrong, 1 if there are anomalies, 2 for an error in the settings.
    """
    parser = argparse.ArgumentParser(
        prog="vr1 check",
        allow_abbrev=False,
        description="Read the full data set of a configuration once: counts, histograms, every anomaly with its file"
        " and record, prompt lengths, and ten records drawn as the model sees them. Takes the settings of `vr1 fit`.",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/check"), help="folder for check.txt and the pictures")
    options, arguments = parser.parse_known_args(argv)
    # Imported late, so that --help does not wait for torch.
    from vr1.commands.check.splits import check
    from vr1.commands.trainer import objects_of

    try:
        module, data = objects_of(["fit", *arguments])
        limits = dict.fromkeys(("val", "test"), module.evaluation.max_new_tokens)
        for sampling in module.samplings("fit"):
            if sampling is not module.evaluation:
                limits["train"] = sampling.max_new_tokens
        return check(module.encoder, data, options.out, limits)
    except (ValueError, OSError) as error:
        return report_user_error("vr1 check", error)
