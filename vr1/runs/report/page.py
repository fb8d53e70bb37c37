"""The report of a run folder as one HTML page without other files, requests or libraries."""

import base64
import csv
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
from vr1.runs.classes import ClassComparison
from vr1.runs.figures import panels_of
from vr1.runs.folder import TILES, Points, Run, read_run
from vr1.runs.tables import Comparison, figure_text

Gallery = tuple[int, Path]
# (width in pixels, JPEG quality), tried in this order.
_PICTURE_SIZES = ((1500, 82), (1200, 78), (1000, 72), (800, 66))
# Pictures are made smaller only when no more than these are left.
_MIN_PICTURES = 5


def embedded(galleries: Sequence[Gallery], budget: int, most: int = 40) -> list[tuple[int, str]]:
    """Pictures as ``data:`` URLs, the first and the last always among them.

    Args:
        galleries: (optimizer step, picture) in order.
        budget: bytes of all URLs together.
        most: maximum number of pictures; they are evenly spread.

    Returns:
        (optimizer step, URL); fewer and smaller pictures where the budget requires it.

    Raises:
        UserError: a picture is damaged.
    """
    chosen = _spread(galleries, most)
    while chosen:
        for width, quality in _PICTURE_SIZES:
            encoded = [(step, _data_url(path, width, quality)) for step, path in chosen]
            size = sum(len(url) for _, url in encoded)
            if size <= budget:
                return encoded
            if len(chosen) > _MIN_PICTURES:
                break
        if len(chosen) == 1:
            return []
        # At once to about what fits, since every attempt encodes all pictures again.
        chosen = _spread(chosen, max(1, min(len(chosen) - 1, len(chosen) * budget // size)))
    return []


def _spread(galleries: Sequence[Gallery], most: int) -> list[Gallery]:
    if len(galleries) <= most:
        return list(galleries)
    if most == 1:
        return [galleries[-1]]
    last = len(galleries) - 1
    return [galleries[round(index * last / (most - 1))] for index in range(most)]


def _data_url(path: Path, width: int, quality: int) -> str:
    buffer = io.BytesIO()
    try:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a picture ({error}); remove it to continue without") from None
    if small.width > width:
        small = small.resize((width, round(small.height * width / small.width)), Image.Resampling.LANCZOS)
    small.save(buffer, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


_HERE = Path(__file__).parent
_PICTURE_BYTES = 3_500_000
_MAX_POINTS = 400
# The others are below a heading that opens them.
_OPEN_PANELS = 9
# Of the pictures of single images through training.
_FILM_IMAGES, _FILM_STEPS, _FILM_WIDTH = 3, 6, 360


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run folder, from the files in it.

    Args:
        folder: a run folder, or a folder with ``version_N`` in it, of which the newest is taken.

    Returns:
        The path of the page.

    Raises:
        UserError: there is no run, or one of its files is damaged.
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
    """The page as HTML.

    Args:
        run: what :func:`~vr1.runs.read_run` returned.

    Raises:
        UserError: a picture of the run is damaged.
    """
    panels = [
        {
            "title": panel.title,
            "meaning": panel.meaning,
            "lines": [{"name": name, "points": thin(run.series[name])} for name in panel.metrics],
        }
        for panel in panels_of(run.series)
    ]
    pictures = embedded(run.galleries, _PICTURE_BYTES)
    content = {
        "panels": panels[:_OPEN_PANELS],
        "more": panels[_OPEN_PANELS:],
        "switches": run.switches,
        "galleries": [{"step": step, "src": url} for step, url in pictures],
    }
    name = "/".join(run.folder.resolve().parts[-2:])
    sections = [
        _head(run, name),
        _section("Before and after", _before_after(run.comparison)),
        _section("Through training", _film(run.galleries)),
        _section("Gallery", _gallery(len(run.galleries), len(pictures))),
        _section("Curves", _curves(panels)),
        _section("Stages", _stages(run)),
        _section("Classes", _classes(run.classes) + _evaluated_classes(run.folder / "evaluation" / "per_class.csv")),
        _section("Data", _data(run.data)),
        _section("How to repeat it", _facts(run.facts)),
        _section("Settings", _settings(run.facts.get("given") or {}, run.config)),
    ]
    page = (_HERE / "page.html").read_text(encoding="utf-8")
    parts = {
        "@TITLE@": html.escape(name),
        "@STYLE@": (_HERE / "style.css").read_text(encoding="utf-8"),
        "@BODY@": "\n".join(sections),
        "@SCRIPT@": (_HERE / "script.js").read_text(encoding="utf-8"),
        # A browser looks for the end of the script before it reads the JSON, so no tag may stand in it.
        "@CONTENT@": json.dumps(content, separators=(",", ":")).replace("<", "\\u003c"),
    }
    # In one pass, since the text of a run may contain a placeholder itself.
    return re.sub("|".join(parts), lambda match: parts[match[0]], page)


def thin(points: Points) -> list[list[float]]:
    """Shorten a series to at most 400 points, each the mean of as many consecutive values.

    Args:
        points: (optimizer step, value) in order.

    Returns:
        [step, value]; the step is the last of the values that the mean is of.

    Example:
        >>> len(thin([(step, 1.0) for step in range(100_000)])) <= 400
        True
    """
    width = -(-len(points) // _MAX_POINTS)
    groups = [points[start : start + width] for start in range(0, len(points), max(1, width))]
    return [[group[-1][0], float(f"{sum(value for _, value in group) / len(group):.5g}")] for group in groups]


def _section(title: str, body: str) -> str:
    anchor = title.lower().replace(" ", "-")
    return f'<section id="{anchor}"><h2>{html.escape(title)}</h2>{body}</section>' if body else ""


def _head(run: Run, name: str) -> str:
    steps = max((points[-1][0] for points in run.series.values() if points), default=0)
    started = str(run.facts.get("started", "")).replace("T", " ").replace("+00:00", " UTC")
    line = " · ".join(filter(None, (f"{steps} optimizer steps", started, run.facts.get("ended"))))
    return f"<header><h1>{html.escape(name)}</h1><p>{html.escape(line)}</p></header>"


def _before_after(comparison: Comparison) -> str:
    if not comparison.rows:
        return ""
    notes = "".join(f'<p class="note">{html.escape(str(note))}</p>' for note in comparison.notes)
    return _table(comparison.columns, comparison.rows) + notes


def _gallery(total: int, shown: int) -> str:
    if not shown:
        return ""
    note = "" if total == shown else f'<p class="note">{shown} of {total} pictures; all of them are in gallery/.</p>'
    slider = (
        '<label class="slider"><span id="gallery-step"></span>'
        f'<input id="gallery-slider" type="range" min="0" max="{shown - 1}" value="{shown - 1}"'
        ' aria-label="validation shown"></label>'
    )
    frame = '<div class="frame" tabindex="0"><img id="gallery-picture" alt="gallery of the chosen step"></div>'
    return f"{slider if shown > 1 else '<p id=gallery-step></p>'}{frame}{note}"


def _curves(panels: Sequence[Any]) -> str:
    if not panels:
        return '<p class="note">No metric was logged: add callbacks.Curves or a CSVLogger to the trainer.</p>'
    more = "<details><summary>All other metrics</summary><div class='charts' id='more'></div></details>"
    return f'<div class="charts" id="charts"></div>{more if len(panels) > _OPEN_PANELS else ""}'


def _stages(run: Run) -> str:
    return _table(["stage", "from step"], [[name, str(step)] for step, name in run.switches]) if run.switches else ""


def _data(data: dict[str, Any]) -> str:
    splits = data.get("splits") or {}
    if not splits:
        return ""
    rows = []
    for split, summary in splits.items():
        labels = ", ".join(f"{label} ({count})" for label, count in (summary.get("labels") or {}).items())
        hidden = summary.get("distinct_labels", 0) - len(summary.get("labels") or {})
        rows.append(
            [
                split,
                f"{summary.get('records', 0):,}",
                f"{summary['boxes']:.2f}" if "boxes" in summary else "-",
                _range(summary.get("width")) + " x " + _range(summary.get("height")),
                labels + (f" and {hidden} more" if hidden > 0 else ""),
            ]
        )
    table = _table(["split", "images", "boxes per image", "pixels", "labels"], rows)
    note = "Boxes, sizes and labels are those of a sample: " + ", ".join(
        f"{summary.get('sampled', 0)} images of {split}" for split, summary in splits.items()
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


def _settings(given: dict[str, Any], config: str) -> str:
    """What configurations and command line set, and all settings with the defaults."""
    table = _table(["set by its configurations and the command line", ""], [[k, str(v)] for k, v in given.items()])
    full = f"<details><summary>config.yaml</summary><pre>{html.escape(config)}</pre></details>" if config else ""
    return (table if given else "") + full


def _film(galleries: Sequence[Gallery]) -> str:
    """The same images at several validations, side by side; nothing where the galleries do not name their tiles."""
    chosen = [(step, tiles) for step, path in _spread(galleries, _FILM_STEPS) if (tiles := _tiles(path))]
    if len(chosen) < 2:
        return ""
    rows = []
    for image in range(min(_FILM_IMAGES, *(len(tiles) for _, tiles in chosen))):
        figures = "".join(
            f'<figure><img src="{tiles[image]}" alt="image {image + 1} {_moment(step)}">'
            f"<figcaption>{_moment(step)}</figcaption></figure>"
            for step, tiles in chosen
        )
        rows.append(f'<div class="film" tabindex="0">{figures}</div>')
    return "".join(rows)


def _moment(step: int) -> str:
    return f"step {step}" if step else "before training"


def _tiles(path: Path) -> list[str]:
    """The first tiles of a gallery as ``data:`` URLs: the picture says where they are."""
    try:
        with Image.open(path) as picture:
            corners = json.loads(picture.info.get(TILES, "[]"))[:_FILM_IMAGES]
            tiles = [picture.convert("RGB").crop(box) for box in corners]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as a picture ({error}); remove it to continue without") from None
    urls = []
    for tile in tiles:
        tile.thumbnail((_FILM_WIDTH, 2 * _FILM_WIDTH), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        tile.save(buffer, "JPEG", quality=80, optimize=True)
        urls.append("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"))
    return urls


def _classes(classes: ClassComparison) -> str:
    """The figures of each class in the validations of the training."""
    if not classes.rows:
        return ""
    note = (
        "AP is COCO's, the mean over overlaps 0.5 to 0.95, of the validation images; val/map is the mean of the classes"
        " that have a box." + (" Press a heading to sort by it." if len(classes.rows) > 1 else "")
    )
    return _table(classes.columns, classes.rows, kind="sortable") + f'<p class="note">{html.escape(note)}</p>'


def _evaluated_classes(path: Path) -> str:
    """The table by class of an evaluation in the run's folder."""
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8", newline="") as file:
        measured = list(csv.DictReader(file))
    several = len({row["set"] for row in measured}) > 1
    rows = []
    for row in measured:
        name = f"{row['set']}/{row['category']}" if several else row["category"]
        values = [float(row[figure]) for figure in ("map", "map_50", "ar_100")]
        texts = [figure_text(None if value < 0 else value) for value in values]
        rows.append([name, f"{float(row['objects']):.0f}", *texts])
    head = ["class", "boxes", "AP", "AP50", "AR100"]
    return "<h3>In the folder evaluation</h3>" + _table(head, rows, kind="sortable")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    content = f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="table {kind}" tabindex="0"><table>{content}</table></div>'


def _range(ends: Sequence[int] | None) -> str:
    if not ends:
        return "-"
    return str(ends[0]) if ends[0] == ends[1] else f"{ends[0]}…{ends[1]}"
