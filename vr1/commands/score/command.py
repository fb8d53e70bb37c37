"""``python -m vr1 score``: the rewards of recorded answers, without a model."""

import argparse
import gc
from collections.abc import Sequence

from vr1.errors import report_user_error

STAGES = ("beginner", "advanced", "off")
_CLASS_HELP = {"--family.help", "--rewards.help"}


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: the arguments after ``python -m vr1 score``.

    Returns:
        The exit status: 0, or 2 after a one-line message for an error that the user can fix.
    """
    # The help of a class needs no answers.
    parser = _parser(needs_answers=not _CLASS_HELP.intersection(argument.partition("=")[0] for argument in argv))
    settings, class_arguments = parser.parse_known_args(argv)
    # Imported here, so that --help does not wait for torch.
    from vr1.commands.class_arguments import rewards_and_family
    from vr1.commands.score.scoring import score_file
    from vr1.families import Qwen25VL

    # Objects made by imports live as long as the process; a garbage collection that visits them takes a fifth longer.
    gc.freeze()
    try:
        rewards, family = rewards_and_family(class_arguments, parser.prog, default_family=Qwen25VL)
        assert family is not None
        print(score_file(settings.completions, rewards, family, settings.stage, settings.out, settings.coco))
    except Exception as error:
        return report_user_error(parser.prog, error)
    finally:
        gc.unfreeze()
    return 0


def _parser(needs_answers: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vr1 score",
        allow_abbrev=False,
        description="Compute the reward of every answer in a file and a summary of all, without a model.",
        epilog="--rewards takes a file such as configs/rewards/released.yaml, or settings such as"
        " --rewards.criterion.xi0 0.6 (--rewards.help vr1.rewards.Reward lists them); --family takes the class of the"
        " model family that wrote the answers, such as InternVL, or a file; Qwen25VL by default (--family.help"
        " vr1.families.CustomFamily lists settings).",
    )
    parser.add_argument(
        "--completions",
        required=needs_answers,
        metavar="FILE",
        help="recorded answers, one JSON object a line, with the fields completion (the text as the model wrote it),"
        " boxes_xyxy (the true boxes as [[x1, y1, x2, y2], ...] in image pixels), labels (one text for each of them),"
        " image_size ([width, height] of the image) and input_size ([width, height] of the image as the model saw it;"
        " coordinates in the answer count in this frame); optional are image_id, categories (those of the question; all"
        " labels of the file by default), set, areas, crowd and scores, as in the answers.jsonl of an evaluation",
    )
    parser.add_argument(
        "--stage", choices=STAGES, help="thresholds to apply; by default those of the criterion of the rewards"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="file to write: each line with rewards (by term, and total), parsed (number of predicted boxes) and"
        " matched (number of pairs) added; it appears when all lines are done",
    )
    parser.add_argument(
        "--coco",
        metavar="FOLDER",
        help="folder for COCO metrics of the answers: results and ground truth as COCO's own json, all figures, tables"
        " by set and by class",
    )
    return parser
