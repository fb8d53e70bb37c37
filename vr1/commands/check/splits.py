"""Reads all splits of a data module and says what is found in them."""

from pathlib import Path
from typing import Any

from vr1.commands.check.pictures import draw_records, histograms
from vr1.commands.check.rows import read_rows
from vr1.commands.check.summary import Summary, anomalies
from vr1.data.datamodule import MissingSplitError
from vr1.data.validation import FaultyRecordsError, Problems
from vr1.errors import UserError
from vr1.prompts import PromptEncoder

_SPLITS = ("train", "val", "test")
_DRAWN = 10
_NO_LIMIT = 10**9


def check(encoder: PromptEncoder, data: Any, out: Path) -> int:
    """Read all splits of a data module, print what is found, and write it with its pictures.

    Args:
        encoder: the model's `PromptEncoder`.
        data: a `RecordDataModule`.
        out: folder for ``check.txt``, ``histograms.png`` and ``records_SPLIT.png``.

    Returns:
        0, or 1 if there is an anomaly.

    Raises:
        UserError: no split can be opened; what is wrong with each was printed.
    """
    limit, unlimited = encoder.max_prompt_tokens, PromptEncoder(encoder.processor, encoder.family, _NO_LIMIT)
    sources, faulty = _open(data)
    out.mkdir(parents=True, exist_ok=True)
    summaries = []
    for name, source in sources.items():
        problems, notes = _found_when_opened(source, name)
        rows = list(read_rows(source, unlimited, limit, data.num_workers))
        for row in rows:
            for kind, where in row.faults:
                problems.add(kind, where)
        summaries.append(Summary(name=name, rows=rows, limit=limit, problems=problems, notes=notes))
        print(summaries[-1].text(), end="\n\n", flush=True)
        draw_records(source, unlimited, _DRAWN, data.seed).save(out / f"records_{name}.png")
    (out / "check.txt").write_text("\n\n".join(item.text() for item in summaries) + "\n", encoding="utf-8")
    histograms(summaries).savefig(out / "histograms.png", dpi=110)
    print(f"{out}: check.txt, histograms.png, {', '.join(f'records_{name}.png' for name in sources)}")
    return int(faulty or any(len(item.problems) for item in summaries))


def _open(data: Any) -> tuple[dict[str, Any], bool]:
    """The sources of the splits that can be opened, and whether one of the others is faulty, not just missing."""
    sources: dict[str, Any] = {}
    errors: list[UserError] = []
    for name in _SPLITS:
        try:
            sources[name] = data.build(name)
        except UserError as error:
            errors.append(error)
            told = str(error)
            if isinstance(error, FaultyRecordsError):
                told = f"{error.problems.source}\n{anomalies(error.problems)}"
            print(f"{name} cannot be opened: {told}", end="\n\n")
    if not sources:
        raise errors[0]
    return sources, not all(isinstance(error, MissingSplitError) for error in errors)


def _found_when_opened(source: Any, name: str) -> tuple[Problems, list[str]]:
    """Problems and notes of the reports of a source and of those that it is made of."""
    problems, notes, waiting = Problems(name), [], [source]
    while waiting:
        part = waiting.pop()
        waiting += [*getattr(part, "sources", []), *([part.source] if hasattr(part, "source") else [])]
        if (report := getattr(part, "report", None)) is not None:
            notes += report.notes
            for kind, places in report.problems.by_kind.items():
                for place in places:
                    problems.add(kind, f"{report.problems.source}: {place}")
    return problems, notes
