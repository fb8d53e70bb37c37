"""Files of recorded answers: one JSON object a line, written by evaluations, read by ``score`` and on resume.

`RecordedAnswer` says what a line holds and checks it; this module reads files.
"""

import codecs
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vr1.errors import UserError
from vr1.metrics.answer_schema import QuestionKey, RecordedAnswer


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredCompletion:
    """The text of an answer and the scores of its boxes.

    Attributes:
        completion: the answer as the model wrote it.
        scores: one for each box that is read from it; None gives all boxes the same constant score.
    """

    completion: str
    scores: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AnswerLine:
    """One line of a file of answers.

    Attributes:
        answer: what the line says.
        text: the line as it stands in the file, without the line end.
        fields: all fields of its JSON object, those included that `answer` does not use.
        end: position in the file of the first byte after this line.
    """

    answer: RecordedAnswer
    text: str
    fields: dict[str, Any]
    end: int


def read_answer_lines(path: Path, *, skip_faulty: bool = False) -> Iterator[AnswerLine]:
    r"""Yield the answers of a file one by one; empty lines are skipped.

    Args:
        path: a file of lines ``{"completion": text, "boxes_xyxy": [[x1, y1, x2, y2], ...], "labels": [text, ...],
            "image_size": [w, h], "input_size": [w, h]}`` in UTF-8; `RecordedAnswer.from_json` lists optional fields.
        skip_faulty: skip faulty lines instead of raising. A process that is killed leaves a line that ends in the
            middle; a machine that crashes may leave a block of zeros.

    Raises:
        UserError: at the first faulty line, unless these are skipped.
        OSError: the file cannot be read.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "answers.jsonl"
        >>> _ = file.write_text('{"completion": "[]"}\n')
        >>> list(read_answer_lines(file, skip_faulty=True))
        []
        >>> next(read_answer_lines(file))
        Traceback (most recent call last):
            ...
        vr1.errors.UserError: ...answers.jsonl:1: no "boxes_xyxy"; a line needs completion, ...
    """
    end = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            end += len(raw)
            line = raw.removeprefix(codecs.BOM_UTF8).strip() if number == 1 else raw.strip()
            if not line:
                continue
            try:
                text, fields = _decode(line)
                answer = RecordedAnswer.from_json(fields, number)
            except UserError as error:
                if skip_faulty:
                    continue
                raise UserError(f"{path}:{number}: {error}") from None
            yield AnswerLine(answer=answer, text=text, fields=fields, end=end)


def complete_lines(paths: Iterable[Path]) -> Iterator[str]:
    """The text of every valid line of several files, line end included; missing files are skipped."""
    for path in paths:
        if path.is_file():
            yield from (f"{line.text}\n" for line in read_answer_lines(path, skip_faulty=True))


def read_completions(path: Path) -> dict[QuestionKey, ScoredCompletion]:
    """The first answer to each question of a file that an evaluation wrote; faulty lines are skipped."""
    completions: dict[QuestionKey, ScoredCompletion] = {}
    for line in read_answer_lines(path, skip_faulty=True):
        answer = line.answer
        completions.setdefault(
            answer.key, ScoredCompletion(completion=answer.completion, scores=tuple(answer.scores.tolist()))
        )
    return completions


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of an object, each given once."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise UserError(f'"{double}" is given twice; give each field once')
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _decode(line: bytes) -> tuple[str, dict[str, Any]]:
    """The text of a line and the fields of its JSON object. Errors do not name the file yet."""
    try:
        text = line.decode()
        fields = _DECODER.decode(text)
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 (byte {error.start} of the line); write the file in UTF-8") from None
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({str(error) or 'too deep'}); write one JSON object a line") from None
    if not isinstance(fields, dict):
        raise UserError(f"a {type(fields).__name__} instead of an object; write one JSON object a line")
    return text, fields
