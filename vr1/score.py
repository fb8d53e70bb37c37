"""``python -m vr1 score``: the rewards of recorded answers, without a model."""

import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO

from jsonargparse import ArgumentParser

from vr1.answer_lines import AnswerLine, InputError, read_answer_lines
from vr1.detections import read_detections
from vr1.families import Family
from vr1.metrics.answer_rows import evaluated_row
from vr1.metrics.evaluation_files import table_text, write_evaluation
from vr1.records import Detections
from vr1.rewards import Reward, Stage
from vr1.tally import Tally

_CHUNK = 256
_SECONDS_BETWEEN_REPORTS = 5.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; those of the process where left out.

    Returns:
        Exit status: 0, or 2 after a message that says what is wrong with a file or a setting.
    """
    parser = ArgumentParser(prog="python -m vr1 score", description="Reward recorded answers, without a model.")
    parser.add_function_arguments(score_file, skip={"rewards", "family"})
    parser.add_subclass_arguments(
        Reward,
        "rewards",
        required=False,
        help="A YAML file such as configs/rewards/released.yaml, or settings such as --rewards.criterion.xi0 0.6.",
    )
    parser.add_subclass_arguments(Family, "family", required=False, help="The model family that wrote the answers.")
    parser.set_defaults(
        {"rewards": {"class_path": "vr1.rewards.Reward"}, "family": {"class_path": "vr1.families.Qwen25VL"}}
    )
    arguments = parser.parse_args(argv)
    # Lightning's own extra holds jsonargparse below the version that renamed this method.
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    try:
        settings = instantiate(arguments).as_dict()
    except ValueError as error:
        return _fail(parser.prog, error)
    # What is imported by now is never garbage, and walking it takes a fifth of the time.
    gc.freeze()
    try:
        print(score_file(**settings))
    except (InputError, OSError) as error:
        return _fail(parser.prog, error)
    finally:
        gc.unfreeze()
    return 0


def score_file(
    completions: str,
    rewards: Reward,
    family: Family,
    stage: Stage | None = None,
    out: str | None = None,
    coco: str | None = None,
) -> Tally:
    """Reward every answer of a file and sum up.

    Args:
        completions: File of recorded answers, one JSON object a line, with the fields completion (the text as the model
            wrote it), boxes_xyxy (the true boxes as [[x1, y1, x2, y2], ...] in image pixels), labels (one text for each
            of them), image_size ([width, height] of the image) and input_size ([width, height] of the image as the
            model saw it; coordinates in the answer are read in this frame). Further fields are kept.
        rewards: The rewards.
        family: The model family that wrote the answers.
        stage: Thresholds to apply: beginner, advanced, or off. Where left out, the criterion of the rewards itself.
        out: File to write: each line with rewards (by term, and total), parsed (number of boxes read) and matched
            (number of pairs) added. It appears when all lines are done.
        coco: Folder for COCO metrics of the answers: results and ground truth as COCO's own json, all figures, tables
            by set and by class. Lines may also give image_id, categories (what was asked for; all labels of the file
            where left out), set, areas, crowd and scores, as the answers.jsonl of an evaluation does.

    Returns:
        The sums over all answers.

    Raises:
        InputError: if a file is missing or cannot be written, at the first wrong line, or if there is none at all.
        OSError: if reading or writing fails on the way.
    """
    source = Path(completions)
    if not source.is_file():
        raise InputError(f"--completions {source} is not a file; name a file of recorded answers")
    if stage is not None:
        rewards.criterion = rewards.criterion.at_stage(stage)
    tally = Tally([*rewards.terms, "total"])
    kept: list[tuple[AnswerLine, Detections]] = []
    with contextlib.ExitStack() as stack:
        size = source.stat().st_size
        file = stack.enter_context(_written_at_once(Path(out), source)) if out is not None else None
        report_at = time.monotonic() + _SECONDS_BETWEEN_REPORTS
        lines = read_answer_lines(source)
        while chunk := list(islice(lines, _CHUNK)):
            for line, (result, found) in zip(chunk, _score(chunk, rewards, family, tally), strict=True):
                if file is not None:
                    file.write(_with_fields(line, result))
                if coco is not None:
                    kept.append((line, found))
            if time.monotonic() > report_at:
                print(f"{chunk[-1].end / size:.0%} of {source}: {tally.progress()}", file=sys.stderr)
                report_at = time.monotonic() + _SECONDS_BETWEEN_REPORTS
        if not tally.answers:
            raise InputError(f"{source}: no line in it; a line is one answer as a JSON object")
    if coco is not None:
        tally.appendix = _evaluate(kept, source, Path(coco))
    return tally


def _evaluate(kept: list[tuple[AnswerLine, Detections]], source: Path, folder: Path) -> str:
    """Write the COCO metrics of all answers; the table of their sets."""
    known = sorted({label for line, _ in kept for label in line.targets.labels})
    rows = []
    for number, (line, found) in enumerate(kept, start=1):
        try:
            rows.append(evaluated_row(line.fields, number, line.targets, found, line.image_size, known))
        except ValueError as error:
            raise InputError(f"{source}: answer {number}: {error}") from error
    return table_text(write_evaluation(folder, rows))


def _score(
    chunk: list[AnswerLine], rewards: Reward, family: Family, tally: Tally
) -> Iterator[tuple[dict[str, object], Detections]]:
    """What is added to each line of a chunk, and what was read from it."""
    detections = [read_detections(line.completion, family, line.image_size, line.input_size) for line in chunk]
    output = rewards(detections, [line.targets for line in chunk])
    scores = {name: values.tolist() for name, values in [*output.terms.items(), ("total", output.total)]}
    tally.add(scores, output.matches)
    for row, match in enumerate(output.matches):
        # Six digits are all that float32 holds.
        earned = {name: round(values[row], 6) for name, values in scores.items()}
        yield {"rewards": earned, "parsed": match.num_predicted, "matched": len(match.overlap)}, match.detections


def _with_fields(line: AnswerLine, result: dict[str, object]) -> str:
    """The line with fields added, the rest of it left as it was written."""
    if line.fields.keys() & result.keys():
        return json.dumps(line.fields | result) + "\n"
    return f"{line.text[:-1].rstrip()}, {json.dumps(result)[1:]}\n"


@contextlib.contextmanager
def _written_at_once(path: Path, source: Path) -> Iterator[IO[str]]:
    """A file that takes its name when it is complete, and is never seen half written."""
    path = path.resolve()
    if path == source.resolve() or (path.exists() and path.samefile(source)):
        raise InputError(f"--out {path} is the file of completions; name another file")
    if path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
        raise InputError(f"--out {path} exists and is not a file that can be written; name another file")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        file = partial.open("w", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"--out {path} cannot be written ({error.strerror}); name a file in a folder that can"
        ) from None
    try:
        with file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _fail(program: str, error: Exception) -> int:
    print(f"{program}: {error}", file=sys.stderr)
    return 2
