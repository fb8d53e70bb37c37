"""``python -m vr1 check --config ...``: read the whole data set once, before anything is trained on it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vr1.check.pictures import draw_records, histograms
from vr1.check.rows import read_rows
from vr1.check.summary import Summary
from vr1.data.problems import Problems, all_shown
from vr1.mistakes import told_by_us

_SPLITS = ("train", "val", "test")
_DRAWN = 10


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: the words after ``python -m vr1 check``: those of ``fit``, and ``--out``.

    Returns:
        The exit status: 0 if nothing is wrong, 1 if there are anomalies, 2 for a mistake in the settings.
    """
    # What it imports takes seconds, and no other command of this kind needs it.
    from vr1.trainer_commands import objects_of

    parser = argparse.ArgumentParser(
        prog="vr1 check",
        allow_abbrev=False,
        description="Read the whole data set of a configuration once: counts, histograms, every anomaly with its file"
        " and record, prompt lengths, and ten records drawn as the model sees them. Takes the settings of `vr1 fit`.",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/check"), help="folder for check.txt and the pictures")
    options, words = parser.parse_known_args(argv)
    try:
        module, data = objects_of(["fit", *words])
        return check(module.encoder, data, options.out)
    except (ValueError, OSError) as error:
        if (ours := told_by_us(error)) is None:
            raise
        print(f"vr1 check: {ours}", file=sys.stderr)
        return 2


def check(encoder: Any, data: Any, out: Path) -> int:
    """Read all splits of a data module, print what is found, and write it with its pictures.

    Args:
        encoder: the model's `PromptEncoder`.
        data: a `RecordDataModule`.
        out: folder for ``check.txt``, ``histograms.png`` and ``records_SPLIT.png``.

    Returns:
        0, or 1 if there is an anomaly.

    Raises:
        ValueError: no split can be opened; the message lists all that is wrong with the first.
    """
    with all_shown():
        sources, faulty = _open(data)
    out.mkdir(parents=True, exist_ok=True)
    summaries = []
    for name, source in sources.items():
        problems, notes = _found_when_opened(source, name)
        rows = list(read_rows(source, encoder, data.num_workers))
        for row in rows:
            for kind, where in row.faults:
                problems.add(kind, where)
        summaries.append(Summary(name=name, rows=rows, limit=encoder.max_prompt_tokens, problems=problems, notes=notes))
        print(summaries[-1].text(), end="\n\n", flush=True)
        draw_records(source, encoder, _DRAWN, data.seed).save(out / f"records_{name}.png")
    (out / "check.txt").write_text("\n\n".join(item.text() for item in summaries) + "\n", encoding="utf-8")
    histograms(summaries).savefig(out / "histograms.png", dpi=110)
    print(f"{out}: check.txt, histograms.png, {', '.join(f'records_{name}.png' for name in sources)}")
    return int(faulty or any(len(item.problems) for item in summaries))


def _open(data: Any) -> tuple[dict[str, Any], bool]:
    """The sources of the splits that can be opened, and whether one of the others is there and faulty."""
    sources: dict[str, Any] = {}
    errors: list[ValueError] = []
    for name in _SPLITS:
        try:
            sources[name] = data.build(name)
        except ValueError as error:
            errors.append(error)
            print(f"{name} cannot be opened: {error}", end="\n\n")
    if not sources:
        raise errors[0]
    # Faults come as a list of lines; that there is no such split is told in one.
    return sources, any("\n" in str(error) for error in errors)


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
