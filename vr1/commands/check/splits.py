"""Reads all splits of a data module and reports what is in them and what is wrong with them."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vr1.commands.check.pictures import draw_records, histograms
from vr1.commands.check.rows import Row, read_rows
from vr1.commands.check.summary import Summary, listed
from vr1.data.datamodule import MissingSplitError, RecordDataModule
from vr1.data.source import DataReport, RecordSource
from vr1.data.validation import SHOWN, Problems
from vr1.errors import UserError
from vr1.prompts import PromptEncoder

ROUNDED = "image with a box up to 1 px outside it, clipped"
_SPLITS = ("train", "val", "test")
_DRAWN = 10
_NO_LIMIT = 10**9


def check(encoder: PromptEncoder, data: RecordDataModule, out: Path, answer_limits: Mapping[str, int]) -> int:
    """Read all splits of a data module, print the results, and write them with pictures.

    Args:
        encoder: the model's `PromptEncoder`.
        data: the data module.
        out: folder for ``check.txt``, ``histograms.png`` and ``records_SPLIT.png``.
        answer_limits: longest completion in tokens by the name of a split; without one nothing is sampled.

    Returns:
        0, or 1 if there is an anomaly.

    Raises:
        UserError: no split can be opened.
    """
    # What sources warn of is in their reports and in the rows, each once.
    log = logging.getLogger("vr1.data")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        return _check(encoder, data, out, answer_limits)
    finally:
        log.setLevel(level)


def _check(encoder: PromptEncoder, data: RecordDataModule, out: Path, answer_limits: Mapping[str, int]) -> int:
    limit, unlimited = encoder.max_prompt_tokens, PromptEncoder(encoder.processor, encoder.family, _NO_LIMIT)
    data.report_bad_records()
    data.take_input_sizes(encoder.input_size)
    sources, unopened = _open(data)
    out.mkdir(parents=True, exist_ok=True)
    summaries = []
    reported: list[DataReport] = []
    for name, source in sources.items():
        problems, remarks, notes = _found_when_opened(source, name, reported)
        answer_limit = answer_limits.get(name)
        rows = list(read_rows(source, unlimited, limit, answer_limit, data.num_workers))
        for row in rows:
            for kind, where in row.faults:
                problems.add(kind, where)
        for kind, where in dict.fromkeys(remark for row in rows for remark in row.remarks):
            remarks.add(kind, where)
        summary = Summary(
            name=name,
            rows=rows,
            limit=limit,
            answer_limit=answer_limit,
            problems=problems,
            remarks=remarks,
            notes=notes,
        )
        summaries.append(summary)
        print(summary.text(SHOWN), end="\n\n", flush=True)
        draw_records(source, unlimited, _DRAWN, data.seed).save(out / f"records_{name}.png")
    same = duplicates({item.name: item.rows for item in summaries})
    if len(same):
        print("\n".join(listed("remarks on all splits", same, SHOWN)), end="\n\n")
    texts = [item.text() for item in summaries] + (["\n".join(listed("remarks on all splits", same))] if same else [])
    result = _result(summaries, unopened)
    (out / "check.txt").write_text("\n\n".join([*texts, result]) + "\n", encoding="utf-8")
    histograms(summaries).savefig(out / "histograms.png", dpi=110)
    print(f"{out}: check.txt, histograms.png, {', '.join(f'records_{name}.png' for name in sources)}")
    print(result)
    return int(bool(unopened) or any(len(item.problems) for item in summaries))


def duplicates(rows: dict[str, Sequence[Row]]) -> Problems:
    """Records of the same image and the same question, in one split or in two.

    Args:
        rows: the rows of each split, by its name.
    """
    problems = Problems("all splits")
    first: dict[tuple[bytes, tuple[str, ...]], tuple[str, Row]] = {}
    origins = set()
    for split, split_rows in rows.items():
        for row in split_rows:
            # The same record may be in two splits on purpose (test takes the records of val), or repeated in a mixture.
            if not row.picture or row.origin in origins:
                continue
            origins.add(row.origin)
            other_split, other = first.setdefault((row.picture, row.question), (split, row))
            if other is row:
                continue
            boxes = "the same boxes" if sorted(row.boxes) == sorted(other.boxes) else "different boxes"
            places = split if split == other_split else f"{other_split} and {split}"
            problems.add(f"same image and question twice in {places}, with {boxes}", f"{other.origin} = {row.origin}")
    return problems


def _result(summaries: Sequence[Summary], unopened: Sequence[str]) -> str:
    verdicts = [*(f"{name} cannot be opened" for name in unopened), *filter(None, (s.verdict() for s in summaries))]
    if not verdicts:
        return "no anomalies"
    advice = "fix the data and settings listed above"
    if any(len(item.problems) for item in summaries):
        advice += ", or leave faulty records out with --data.bad_records skip"
    return f"{'; '.join(verdicts)}: {advice}"


def _open(data: RecordDataModule) -> tuple[dict[str, Any], list[str]]:
    """The sources of the splits that can be opened, and the names of those that are faulty, not just missing."""
    sources: dict[str, Any] = {}
    errors: dict[str, list[str]] = {}
    faulty: list[str] = []
    first: UserError | None = None
    for name in _SPLITS:
        try:
            sources[name] = data.build(name)  # type: ignore[arg-type]
        except UserError as error:
            first = first or error
            state = "is not checked" if isinstance(error, MissingSplitError) else "cannot be opened"
            if state == "cannot be opened":
                faulty.append(name)
            errors.setdefault(f"{state}: {error}", []).append(name)
    if not sources:
        assert first is not None
        raise first
    for text, names in errors.items():
        print(f"{' and '.join(names)} {text}", end="\n\n")
    return sources, faulty


def _found_when_opened(source: Any, name: str, reported: list[DataReport]) -> tuple[Problems, Problems, list[str]]:
    """Problems, remarks and notes of the reports of a source; each report counts in the first split that has it."""
    problems, remarks = Problems(name), Problems(name)
    notes: list[str] = []
    for report in source.reports() if isinstance(source, RecordSource) else []:
        if any(report is other for other in reported):
            continue
        reported.append(report)
        notes += report.notes
        for problem in report.problems:
            problems.add(problem.kind, f"{report.problems.source}: {problem.where}")
        for image in report.rounded:
            remarks.add(ROUNDED, f"{report.problems.source}: {image}")
    return problems, remarks, notes
