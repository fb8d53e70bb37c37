"""Rewards of recorded answers, line by line, and the table that sums them up."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO

from jsonargparse import ArgumentParser

from vr1.detections import SCORE, read_detections
from vr1.families import Family
from vr1.metrics.answer_file import AnswerLine, InputError, evaluated_row, read_answer_lines
from vr1.metrics.evaluation import Evaluated, table_text, write_evaluation
from vr1.rewards import Reward, Stage
from vr1.types import Detections, Match


class ScoreSummary:
    """Counts answers, boxes and rewards in constant memory; as a text it is a table.

    Args:
        names: the rewards to sum up, in the order of the table.

    Attributes:
        appendix: a text to show below the table.

    Example:
        >>> print(str(ScoreSummary(["recall", "total"])).splitlines()[0])
        answers                0
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.sums = dict.fromkeys(names, 0.0)
        self.answers = self.well_formed = self.valid = self.parsed = self.matched = self.targets = 0
        self.started = time.perf_counter()
        self.appendix = ""

    def add(self, scores: Mapping[str, Sequence[float]], matches: Sequence[Match]) -> None:
        """Add the scores of n answers, by reward, and their n matches."""
        for name, values in scores.items():
            self.sums[name] += sum(values)
        self.answers += len(matches)
        for match in matches:
            self.well_formed += match.detections.well_formed
            self.valid += match.detections.valid
            self.parsed += match.num_predicted
            self.matched += len(match.overlap)
            self.targets += match.num_targets

    @property
    def means(self) -> dict[str, float]:
        """Mean of each reward."""
        return {name: total / max(self.answers, 1) for name, total in self.sums.items()}

    @property
    def answers_per_second(self) -> float:
        """Since the summary was made."""
        return self.answers / max(time.perf_counter() - self.started, 1e-9)

    def progress(self) -> str:
        """One line to show while there is more to come."""
        return f"{self.answers:,} answers, {self.answers_per_second:,.0f} a second"

    def __str__(self) -> str:
        answers = max(self.answers, 1)
        rows = {
            "answers": f"{self.answers:,}",
            "follow template": f"{self.well_formed / answers:.2%}",
            "valid": f"{self.valid / answers:.2%}",
            "boxes parsed": f"{self.parsed:,}",
            "boxes matched": f"{self.matched:,}",
            "boxes true": f"{self.targets:,}",
            **{f"mean {name}": f"{mean:.4f}" for name, mean in self.means.items()},
            "answers a second": f"{self.answers_per_second:,.0f}",
        }
        left, right = max(map(len, rows)), max(map(len, rows.values()))
        table = "\n".join(f"{name:<{left}}  {value:>{right}}" for name, value in rows.items())
        return f"{table}\n\n{self.appendix}" if self.appendix else table


_CHUNK = 256
_SECONDS_BETWEEN_REPORTS = 5.0


def rewards_and_family(words: Sequence[str], program: str) -> tuple[Reward, Family]:
    """The rewards and the model family that the words of a command name.

    Args:
        words: ``--rewards`` and ``--family`` with their settings.
        program: the command, as a message about a mistake names it.

    Raises:
        UserError: if a setting is refused by the class that it is of; others end the process with status 2.
    """
    parser = ArgumentParser(allow_abbrev=False, prog=program)
    for name, kind, default in (("rewards", Reward, "vr1.rewards.Reward"), ("family", Family, "vr1.families.Qwen25VL")):
        parser.add_subclass_arguments(kind, name, required=False)
        parser.set_defaults({name: {"class_path": default}})
    # Lightning's own extra holds jsonargparse below the version that renamed this method.
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    made = instantiate(parser.parse_args(words))
    return made.rewards, made.family


def score_file(
    completions: str,
    rewards: Reward,
    family: Family,
    stage: Stage | None = None,
    out: str | None = None,
    coco: str | None = None,
) -> ScoreSummary:
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
    summary = ScoreSummary([*rewards.terms, "total"])
    evaluation = _CocoFolder(Path(coco), source) if coco is not None else None
    with contextlib.ExitStack() as stack:
        size = source.stat().st_size
        file = stack.enter_context(_written_at_once(Path(out), source)) if out is not None else None
        report_at = time.monotonic() + _SECONDS_BETWEEN_REPORTS
        lines = read_answer_lines(source)
        while chunk := list(islice(lines, _CHUNK)):
            for line, (result, found) in zip(chunk, _score(chunk, rewards, family, summary), strict=True):
                if file is not None:
                    file.write(_with_fields(line, result))
                if evaluation is not None:
                    evaluation.add(line, found)
            if time.monotonic() > report_at:
                print(f"{chunk[-1].end / size:.0%} of {source}: {summary.progress()}", file=sys.stderr)
                report_at = time.monotonic() + _SECONDS_BETWEEN_REPORTS
        if not summary.answers:
            raise InputError(f"{source}: no line in it; a line is one answer as a JSON object")
    if evaluation is not None:
        summary.appendix = evaluation.write()
    return summary


class _CocoFolder:
    """Keeps answers for COCO's metrics, and writes these when all are there.

    Args:
        folder: made at once, so that a place that cannot be written is told before anything is computed.
        source: the file of the answers, for messages.

    Raises:
        InputError: if the folder cannot be made.
    """

    def __init__(self, folder: Path, source: Path) -> None:
        self._folder, self._source = folder, source
        self._rows: list[Evaluated] = []
        self._labels: set[str] = set()
        self._unfit = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--coco {folder} cannot be made ({error.strerror}); name another folder") from None

    def add(self, line: AnswerLine, found: Detections) -> None:
        """Take in one answer.

        Raises:
            InputError: if a field of its line is not what it should be.
        """
        number = len(self._rows) + 1
        try:
            self._rows.append(evaluated_row(line.fields, number, line.targets, found, line.image_size))
        except ValueError as error:
            raise InputError(f"{self._source}: answer {number}: {error}") from error
        self._labels.update(line.targets.labels)
        self._unfit += len(line.fields.get("scores", found)) != len(found)

    def write(self) -> str:
        """Write the files; the table of the sets."""
        known = tuple(sorted(self._labels))
        rows = [row if row.categories else replace(row, categories=known) for row in self._rows]
        table = table_text(write_evaluation(self._folder, rows))
        if not self._unfit:
            return table
        return (
            f"{table}\n\n{self._unfit} answers have not one score for each box that was read: theirs count {SCORE} each"
        )


def _score(
    chunk: list[AnswerLine], rewards: Reward, family: Family, summary: ScoreSummary
) -> Iterator[tuple[dict[str, object], Detections]]:
    """What is added to each line of a chunk, and what was read from it."""
    detections = [read_detections(line.completion, family, line.image_size, line.input_size) for line in chunk]
    output = rewards(detections, [line.targets for line in chunk])
    scores = {name: values.tolist() for name, values in [*output.terms.items(), ("total", output.total)]}
    summary.add(scores, output.matches)
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
