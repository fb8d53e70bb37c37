"""Rewards of recorded answers, line by line, and a summary of them."""

import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO

from vr1.detections import read_detections
from vr1.errors import UserError
from vr1.families import GLM4V, Family, Florence2, Gemma, Griffon, InternVL, PaliGemma, Qwen2VL, Qwen25VL
from vr1.metrics.answer_file import AnswerLine, read_answer_lines
from vr1.metrics.answer_schema import RecordedAnswer
from vr1.metrics.evaluation import table_text, write_evaluation
from vr1.rewards import Reward, Stage
from vr1.runs.tables import figure_text
from vr1.types import SCORE, Detections, Match


class ScoreSummary:
    """Counts of answers and boxes, and sums of rewards, in constant memory; as a text it is a table.

    Args:
        names: the rewards, in the order of the table.

    Attributes:
        looks_like: by name of a family, how many answers it reads that the chosen one cannot read.
        appendix: a text to print below the table.

    Example:
        >>> print(str(ScoreSummary(["recall", "total"])).splitlines()[0])
        answers               0
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.sums = dict.fromkeys(names, 0.0)
        self.answers = self.well_formed = self.valid = self.parsed = self.matched = self.targets = 0
        self.problems: Counter[str] = Counter()
        self.looks_like: Counter[str] = Counter()
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
            self.problems.update(problem.partition(":")[0] for problem in match.detections.problems)

    @property
    def means(self) -> dict[str, float]:
        """Mean of each reward."""
        return {name: total / max(self.answers, 1) for name, total in self.sums.items()}

    @property
    def answers_per_second(self) -> float:
        """Answers a second since the summary was created."""
        return self.answers / max(time.perf_counter() - self.started, 1e-9)

    def progress(self) -> str:
        """One line to print while answers are still being scored."""
        return f"{self.answers:,} answers, {self.answers_per_second:,.0f} a second"

    def __str__(self) -> str:
        answers = max(self.answers, 1)
        rows = {
            "answers": f"{self.answers:,}",
            "follow template": figure_text(self.well_formed / answers),
            "valid": figure_text(self.valid / answers),
            "boxes parsed": f"{self.parsed:,}",
            "boxes matched": f"{self.matched:,}",
            "boxes true": f"{self.targets:,}",
            **{f"problem: {kind}": f"{count:,}" for kind, count in self.problems.most_common()},
            **{f"mean {name}": figure_text(mean) for name, mean in self.means.items()},
            "answers a second": f"{self.answers_per_second:,.0f}",
        }
        left, right = max(map(len, rows)), max(map(len, rows.values()))
        table = "\n".join(f"{name:<{left}}  {value:>{right}}" for name, value in rows.items())
        hints = [
            f"{count:,} answer{'s look' if count > 1 else ' looks'} like {name}'s: try --family {name}"
            for name, count in self.looks_like.most_common()
        ]
        return "\n\n".join(filter(None, [table, "\n".join(hints), self.appendix]))


_CHUNK = 256
# One of each form; forms that differ in their frame alone look the same.
_FORMS = (Qwen25VL(), Qwen2VL(), InternVL(), Gemma(), GLM4V(), PaliGemma(), Griffon(), Florence2())
SECONDS_BETWEEN_REPORTS = 5.0


def score_file(
    completions: str,
    rewards: Reward,
    family: Family,
    stage: Stage | None = None,
    out: str | None = None,
    coco: str | None = None,
) -> ScoreSummary:
    """Compute the reward of every answer of a file.

    Args:
        completions: file of recorded answers; see `vr1.metrics.answer_schema.RecordedAnswer.from_json`.
        rewards: the rewards.
        family: the model family that wrote the answers.
        stage: thresholds to apply: ``beginner``, ``advanced`` or ``off``; None keeps the criterion of the rewards.
        out: file to write: each line with ``rewards`` (by term, and ``total``), ``parsed`` (number of predicted boxes)
            and ``matched`` (number of pairs) added. It appears when all lines are done.
        coco: folder for COCO metrics of the answers: results and ground truth as COCO's own json, all figures, tables
            by set and by class.

    Returns:
        The summary of all answers.

    Raises:
        UserError: a file is missing or cannot be written, a line is faulty, there is no line, or the rewards do not
            have the stage.
        OSError: reading or writing fails.
    """
    source = Path(completions)
    if not source.is_file():
        raise UserError(f"--completions {source} is not a file; name a file of recorded answers")
    if stage is not None:
        rewards.set_stage(stage)
    summary = ScoreSummary([*rewards.terms, "total"])
    evaluation = _CocoFolder(Path(coco)) if coco is not None else None
    with contextlib.ExitStack() as stack:
        size = source.stat().st_size
        file = stack.enter_context(_atomic_file(Path(out), source)) if out is not None else None
        report_at = time.monotonic() + SECONDS_BETWEEN_REPORTS
        lines = read_answer_lines(source)
        while chunk := list(islice(lines, _CHUNK)):
            for line, (result, detections) in zip(chunk, _score(chunk, rewards, family, summary), strict=True):
                if file is not None:
                    file.write(_with_fields(line, result))
                if evaluation is not None:
                    evaluation.add(line, detections)
            if time.monotonic() > report_at:
                print(f"{chunk[-1].end / size:.0%} of {source}: {summary.progress()}", file=sys.stderr)
                report_at = time.monotonic() + SECONDS_BETWEEN_REPORTS
        if not summary.answers:
            raise UserError(f"{source}: no line in it; a line is one answer as a JSON object")
    if evaluation is not None:
        summary.appendix = evaluation.write()
    return summary


class _CocoFolder:
    """Collects answers and writes COCO's metrics of them.

    Args:
        folder: created at once, so that a folder that cannot be created is an error before anything is computed.

    Raises:
        UserError: the folder cannot be created.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._answers: list[RecordedAnswer] = []
        self._labels: set[str] = set()
        self._wrong_scores = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--coco {folder} cannot be created ({error.strerror}); name another folder") from None

    def add(self, line: AnswerLine, detections: Detections) -> None:
        """Add an answer with the boxes that the family reads from it."""
        self._answers.append(line.answer.with_detections(detections))
        self._labels.update(line.answer.targets.labels)
        self._wrong_scores += "scores" in line.fields and len(line.answer.scores) != len(detections)

    def write(self) -> str:
        """Write the files and return the table of the sets."""
        every_label = tuple(sorted(self._labels))
        answers = [answer if answer.categories else replace(answer, categories=every_label) for answer in self._answers]
        table = table_text(write_evaluation(self._folder, answers))
        if not self._wrong_scores:
            return table
        return (
            f"{table}\n\n{self._wrong_scores} answers do not have one score for each predicted box: their boxes get the"
            f" score {SCORE}"
        )


def _score(
    chunk: list[AnswerLine], rewards: Reward, family: Family, summary: ScoreSummary
) -> Iterator[tuple[dict[str, object], Detections]]:
    """The fields to add to each line of a chunk, and the boxes read from its answer."""
    answers = [line.answer for line in chunk]
    detections = [
        read_detections(
            answer.completion, family, answer.image_size, answer.input_size, rewards.box_rules, answer.categories
        )
        for answer in answers
    ]
    output = rewards(detections, [answer.targets for answer in answers])
    scores = {name: values.tolist() for name, values in [*output.terms.items(), ("total", output.total)]}
    summary.add(scores, output.matches)
    summary.looks_like.update(name for one in detections if (name := _other_family(one)) is not None)
    for row, match in enumerate(output.matches):
        # float32 holds six digits.
        earned = {name: round(values[row], 6) for name, values in scores.items()}
        yield {"rewards": earned, "parsed": match.num_predicted, "matched": len(match.overlap)}, match.detections


def _other_family(detections: Detections) -> str | None:
    """The family that reads an answer of which the chosen one did not find all; None where there is none."""
    labels = detections.labels
    if detections.well_formed or (labels and all(map(str.strip, labels)) and not detections.problems):
        return None
    for family in _FORMS:
        answer = family.read(detections.completion)
        if answer.follows_template and answer.labels and all(map(str.strip, answer.labels)):
            return type(family).__name__
    return None


def _with_fields(line: AnswerLine, result: dict[str, object]) -> str:
    """The line with fields added; the rest of its text is unchanged."""
    if line.fields.keys() & result.keys():
        return json.dumps(line.fields | result) + "\n"
    return f"{line.text[:-1].rstrip()}, {json.dumps(result)[1:]}\n"


@contextlib.contextmanager
def _atomic_file(path: Path, source: Path) -> Iterator[IO[str]]:
    """A file that is written under a temporary name and renamed when it is complete."""
    path = path.resolve()
    if path == source.resolve() or (path.exists() and path.samefile(source)):
        raise UserError(f"--out {path} is the file of completions; name another file")
    if path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
        raise UserError(f"--out {path} exists and is not a file that can be written; name another file")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        file = partial.open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {path} cannot be written ({error.strerror}); name another file") from None
    try:
        with file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
