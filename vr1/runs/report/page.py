"""One self-contained page of a run folder: no other file, no request, no library."""

import base64
import html
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vr1.errors import UserError
from vr1.runs.figures import panels_of
from vr1.runs.folder import Points, Run, read_run
from vr1.runs.tables import Comparison

Gallery = tuple[int, Path]
# Widths and JPEG qualities to try, from the best on.
_TRIES = ((1500, 82), (1200, 78), (1000, 72), (800, 66))
_LEAST = 5


def embedded(galleries: Sequence[Gallery], budget: int, most: int = 40) -> list[tuple[int, str]]:
    """Pictures as ``data:`` addresses, of which the first and the last are always among them.

    Args:
        galleries: (optimizer step, picture) in order.
        budget: bytes that all addresses together may have.
        most: how many pictures are kept at most, evenly spread.

    Returns:
        (optimizer step, address); fewer and smaller pictures where the budget asks for it.

    Raises:
        UserError: if a picture is damaged.
    """
    kept = _spread(galleries, most)
    while kept:
        for width, quality in _TRIES:
            found = [(step, _address(path, width, quality)) for step, path in kept]
            if sum(len(address) for _, address in found) <= budget:
                return found
            if len(kept) > _LEAST:
                break
        if len(kept) == 1:
            return []
        size = sum(len(address) for _, address in found)
        # One step to about what fits, rather than many that each encode all pictures again.
        kept = _spread(kept, max(1, min(len(kept) - 1, len(kept) * budget // size)))
    return []


def _spread(galleries: Sequence[Gallery], most: int) -> list[Gallery]:
    if len(galleries) <= most:
        return list(galleries)
    if most == 1:
        return [galleries[-1]]
    last = len(galleries) - 1
    return [galleries[round(index * last / (most - 1))] for index in range(most)]


def _address(path: Path, width: int, quality: int) -> str:
    buffer = io.BytesIO()
    try:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a picture ({error}); remove it to go on without") from None
    if small.width > width:
        small = small.resize((width, round(small.height * width / small.width)), Image.Resampling.LANCZOS)
    small.save(buffer, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


_HERE = Path(__file__).parent
_PICTURE_BYTES = 3_500_000
_POINTS = 400
_OPEN_PANELS = 9


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run folder, from what lies there.

    Returns:
        The path of the page.

    Raises:
        UserError: if there is no run, or one of its files is damaged.
    """
    run = read_run(folder)
    path = run.folder / "report.html"
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(build_page(run), encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def build_page(run: Run) -> str:
    """The page as text."""
    panels = [
        {"title": panel.title, "lines": [{"name": name, "points": thin(run.series[name])} for name in panel.metrics]}
        for panel in panels_of(run.series)
    ]
    pictures = embedded(run.galleries, _PICTURE_BYTES)
    content = {
        "panels": panels[:_OPEN_PANELS],
        "more": panels[_OPEN_PANELS:],
        "switches": run.switches,
        "galleries": [{"step": step, "src": address} for step, address in pictures],
    }
    name = "/".join(run.folder.resolve().parts[-2:])
    sections = [
        _head(run, name),
        _section("Before and after", _before_after(run.compared)),
        _section("Gallery", _gallery(len(run.galleries), len(pictures))),
        _section("Curves", _curves(panels)),
        _section("Stages", _stages(run)),
        _section("Data", _data(run.data)),
        _section("How to repeat it", _facts(run.facts)),
        _section("Settings", _settings(run.config)),
    ]
    page = (_HERE / "page.html").read_text(encoding="utf-8")
    parts = {
        "@TITLE@": html.escape(name),
        "@STYLE@": (_HERE / "style.css").read_text(encoding="utf-8"),
        "@BODY@": "\n".join(sections),
        "@SCRIPT@": (_HERE / "script.js").read_text(encoding="utf-8"),
        # The end of a script is found before JSON is: nothing inside may look like it.
        "@CONTENT@": json.dumps(content, separators=(",", ":")).replace("<", "\\u003c"),
    }
    # In one pass: the text of a run may hold a mark itself.
    return re.sub("|".join(parts), lambda found: parts[found[0]], page)


def thin(points: Points) -> list[list[float]]:
    """A series as means over equal numbers of neighbours, so that a page holds a training of any length.

    Example:
        >>> len(thin([(step, 1.0) for step in range(100_000)])) <= 400
        True
    """
    width = -(-len(points) // _POINTS)
    groups = [points[start : start + width] for start in range(0, len(points), max(1, width))]
    return [[group[-1][0], float(f"{sum(value for _, value in group) / len(group):.5g}")] for group in groups]


def _section(title: str, body: str) -> str:
    anchor = title.lower().replace(" ", "-")
    return f'<section id="{anchor}"><h2>{html.escape(title)}</h2>{body}</section>' if body else ""


def _head(run: Run, name: str) -> str:
    steps = max((points[-1][0] for points in run.series.values() if points), default=0)
    said = [f"{steps} optimizer steps", str(run.facts.get("started", "")).replace("T", " ").replace("+00:00", " UTC")]
    ended = run.facts.get("ended")
    said += [ended] if ended else []
    return f"<header><h1>{html.escape(name)}</h1><p>{html.escape(' · '.join(filter(None, said)))}</p></header>"


def _before_after(compared: Comparison) -> str:
    if not compared.rows:
        return ""
    notes = "".join(f'<p class="note">{html.escape(str(note))}</p>' for note in compared.notes)
    return _table(compared.columns, compared.rows) + notes


def _gallery(there: int, shown: int) -> str:
    if not shown:
        return ""
    note = "" if there == shown else f'<p class="note">{shown} of {there} pictures; all of them are in gallery/.</p>'
    slider = (
        '<label class="slider"><span id="gallery-step"></span>'
        f'<input id="gallery-slider" type="range" min="0" max="{shown - 1}" value="{shown - 1}"'
        ' aria-label="validation shown"></label>'
    )
    frame = '<div class="frame" tabindex="0"><img id="gallery-picture" alt="gallery of the chosen step"></div>'
    return f"{slider if shown > 1 else '<p id=gallery-step></p>'}{frame}{note}"


def _curves(panels: Sequence[Any]) -> str:
    if not panels:
        return '<p class="note">No scalar was logged: add callbacks.Curves or a CSVLogger to the trainer.</p>'
    more = "<details><summary>All other scalars</summary><div class='charts' id='more'></div></details>"
    return f'<div class="charts" id="charts"></div>{more if len(panels) > _OPEN_PANELS else ""}'


def _stages(run: Run) -> str:
    return _table(["stage", "from step"], [[name, str(step)] for step, name in run.switches]) if run.switches else ""


def _data(data: dict[str, Any]) -> str:
    splits = data.get("splits") or {}
    if not splits:
        return ""
    rows = []
    for split, found in splits.items():
        labels = ", ".join(f"{label} ({count})" for label, count in (found.get("labels") or {}).items())
        hidden = found.get("distinct_labels", 0) - len(found.get("labels") or {})
        rows.append(
            [
                split,
                f"{found.get('records', 0):,}",
                f"{found['boxes']:.2f}" if "boxes" in found else "-",
                _range(found.get("width")) + " x " + _range(found.get("height")),
                labels + (f" and {hidden} more" if hidden > 0 else ""),
            ]
        )
    table = _table(["split", "images", "boxes per image", "pixels", "labels"], rows)
    note = "Boxes, sizes and labels are those of a sample: " + ", ".join(
        f"{found.get('sampled', 0)} images of {split}" for split, found in splits.items()
    )
    return f"<p>{html.escape(str(data.get('name', '')))}</p>{table}<p class='note'>{html.escape(note)}.</p>"


def _facts(facts: dict[str, Any]) -> str:
    if not facts:
        return ""
    git = facts.get("git")
    state = "no repository"
    if git:
        changed = git.get("changed", 0)
        state = f"{git['commit']} ({git.get('branch')}), " + (f"{changed} files changed" if changed else "clean")
    rows = [["seed", str(facts.get("seed"))], ["git", state]]
    rows += [[name, version] for name, version in (facts.get("versions") or {}).items()]
    return f"<pre>{html.escape(str(facts.get('command', '')))}</pre>{_table(['', ''], rows)}"


def _settings(config: str) -> str:
    return f"<details><summary>config.yaml</summary><pre>{html.escape(config)}</pre></details>" if config else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="table" tabindex="0"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _range(ends: Sequence[int] | None) -> str:
    if not ends:
        return "-"
    return str(ends[0]) if ends[0] == ends[1] else f"{ends[0]}…{ends[1]}"
