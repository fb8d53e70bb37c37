"""``python -m vr1 score``: the rewards of recorded answers, without a model."""

import argparse
import gc
import sys
from collections.abc import Sequence

STAGES = ("beginner", "advanced", "off")


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: the words after ``python -m vr1 score``.

    Returns:
        Exit status: 0, or 2 after a message that says what is wrong with a file or a setting.
    """
    parser = _parser()
    own, words = parser.parse_known_args(argv)
    # Here, so that --help does not wait for torch.
    from vr1.commands.score.scoring import rewards_and_family, score_file
    from vr1.metrics.answer_file import InputError

    try:
        rewards, family = rewards_and_family(words, parser.prog)
    except ValueError as error:
        return _fail(parser.prog, error)
    # What is imported by now is never garbage, and walking it takes a fifth of the time.
    gc.freeze()
    try:
        print(score_file(own.completions, rewards, family, own.stage, own.out, own.coco))
    except (InputError, OSError) as error:
        return _fail(parser.prog, error)
    finally:
        gc.unfreeze()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vr1 score",
        allow_abbrev=False,
        description="Reward every answer of a file and sum up, without a model.",
        epilog="--rewards takes a file such as configs/rewards/released.yaml, or settings such as"
        " --rewards.criterion.xi0 0.6 (--rewards.help lists them); --family the class of the model family that wrote"
        " the answers, vr1.families.Qwen25VL where left out (--family.help).",
    )
    parser.add_argument(
        "--completions",
        required=True,
        metavar="FILE",
        help="recorded answers, one JSON object a line, with the fields completion (the text as the model wrote it),"
        " boxes_xyxy (the true boxes as [[x1, y1, x2, y2], ...] in image pixels), labels (one text for each of them),"
        " image_size ([width, height] of the image) and input_size ([width, height] of the image as the model saw it;"
        " coordinates in the answer are read in this frame); further fields are kept",
    )
    parser.add_argument(
        "--stage", choices=STAGES, help="thresholds to apply; where left out, the criterion of the rewards itself"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="each line with rewards (by term, and total), parsed (number of boxes read) and matched (number of pairs)"
        " added; it appears when all lines are done",
    )
    parser.add_argument(
        "--coco",
        metavar="FOLDER",
        help="COCO metrics of the answers: results and ground truth as COCO's own json, all figures, tables by set and"
        " by class; lines may also give image_id, categories (what was asked for; all labels of the file where left"
        " out), set, areas, crowd and scores, as the answers.jsonl of an evaluation does",
    )
    return parser


def _fail(program: str, error: Exception) -> int:
    print(f"{program}: error: {error}", file=sys.stderr)
    return 2
