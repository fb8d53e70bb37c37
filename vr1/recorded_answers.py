"""Answers that an evaluation wrote before it was interrupted, taken up so that they are not generated again."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vr1.records import DetectionRecord

Question = tuple[str, int, str, str, tuple[int, int]]
"""Set, image id, image, wording, and size of the model's input: what has to be equal for an answer to be that."""

_FIELDS = ("set", "image_id", "image", "instruction", "input_size", "completion", "scores")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """An answer as it was written.

    Attributes:
        completion: its text.
        scores: one for each box that was read from it; None gives them all the constant one.
    """

    completion: str
    scores: tuple[float, ...] | None = None


def question_of(record: DetectionRecord, instruction: str, input_size: tuple[int, int]) -> Question:
    """What tells the question about a record from all others."""
    return (record.set_name, record.image_id, image_name(record), instruction, input_size)


def image_name(record: DetectionRecord) -> str:
    """The image of a record, without the file and line of the question: several may be about one image."""
    return record.origin.rpartition("]: ")[2]


def recorded_answers(path: Path) -> dict[Question, Answered]:
    """The answers of a file of lines as an evaluation writes them, each question's first."""
    answers: dict[Question, Answered] = {}
    for _, row in whole_lines([path]):
        width, height = row["input_size"]
        question = (row["set"], row["image_id"], row["image"], row["instruction"], (width, height))
        answers.setdefault(question, Answered(completion=row["completion"], scores=tuple(row["scores"])))
    return answers


def whole_lines(paths: Iterable[Path]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    r"""The lines of files that are complete answers, as they stand and read; a file that is missing has none.

    A process that is killed leaves a line that ends in the middle, a machine that goes down perhaps a block of zeros.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "answers.jsonl")
        >>> row = dict.fromkeys(_FIELDS, 0)
        >>> _ = file.write_text(json.dumps(row) + "\n" + json.dumps(row)[:20])
        >>> len(list(whole_lines([file])))
        1
    """
    for path in paths:
        if not path.is_file():
            continue
        with path.open("rb") as file:
            for line in file:
                try:
                    row = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    continue
                if isinstance(row, dict) and all(name in row for name in _FIELDS):
                    yield line, row
