"""``python -m vr1 compare``: several runs side by side, as a table and as curves."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from vr1.errors import UserError, report_user_error
from vr1.runs.folder import Run, differing, flat_settings, read_run
from vr1.runs.tables import figure_text, markdown_table

_MAX_SETTINGS = 40
# These come first in the table; all other metrics follow by name.
_MAIN_METRICS = ("map", "map_50", "map_75", "map_ranked", "ar_100", "reward", "total")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments after ``compare``; None takes those of the process.

    Returns:
        Exit status: 0, or 2 after an error message.
    """
    parser = ArgumentParser(allow_abbrev=False, prog="vr1 compare", description="Show several runs side by side.")
    parser.add_argument("runs", nargs="+", type=str, help="Run folders, such as runs/demo/version_0.")
    parser.add_function_arguments(compare, skip={"runs"})
    arguments = parser.parse_args(argv).as_dict()
    try:
        print(compare(**arguments))
    except (UserError, OSError) as error:
        return report_user_error(parser.prog, error)
    return 0


def compare(runs: list[str], out: str = "runs/compare", prefix: str = "val/") -> str:
    """Compare runs: ``compare.md`` and ``compare.png`` in a folder.

    Args:
        runs: two or more run folders.
        out: Folder of the table and the curves.
        prefix: Metrics of the table: those whose names begin with it.

    Returns:
        The table as Markdown, and the files that were written.

    Raises:
        UserError: fewer than two runs are given, one of them is not a run, or no run has a metric with the prefix.
    """
    # Not at the top, so that --help does not wait for matplotlib.
    from vr1.runs.figures import draw_runs

    if len(runs) < 2:
        raise UserError(f"{runs[0]} is the only run; give at least two")
    read = [read_run(Path(run)) for run in runs]
    folders = [run.folder for run in read]
    if repeated := [folder for index, folder in enumerate(folders) if folder in folders[:index]]:
        raise UserError(f"{repeated[0]} is given twice; give each run once")
    names = names_of(folders)
    text = markdown(names, read, prefix)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare.md").write_text(text, encoding="utf-8")
    written = [str(folder / "compare.md")]
    picture = draw_runs(names, read)
    if picture is not None:
        picture.save(folder / "compare.png")
        written.append(str(folder / "compare.png"))
    return f"{text}\n{', '.join(written)}"


def names_of(folders: Sequence[Path]) -> list[str]:
    """Short unique names of folders: the last parts of their paths, as many as that takes.

    Example:
        >>> names_of([Path("runs/a/version_0"), Path("runs/b/version_0")])
        ['a/version_0', 'b/version_0']
    """
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts))):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def markdown(names: Sequence[str], runs: Sequence[Run], prefix: str) -> str:
    """The metrics of runs as a table, and a table of the settings that differ.

    Args:
        names: name of each run.
        runs: the runs, in the same order.
        prefix: metrics whose names begin with it are shown, the main ones first.

    Raises:
        UserError: no run has a metric with the prefix.
    """
    logged = {name for run in runs for name in run.series}
    metrics = sorted((name for name in logged if name.startswith(prefix)), key=_order)
    if not metrics:
        prefixes = sorted({name.split("/")[0] + "/" for name in logged})
        raise UserError(f"no metric begins with {prefix}; give another --prefix, one of {', '.join(prefixes)}")
    rows = [[name, *(_first_last(run, name) for run in runs)] for name in metrics]
    rows.append(["optimizer steps", *(str(_steps(run)) for run in runs)])
    text = "First → last value of each metric (its highest value, and the step of it).\n\n"
    text += markdown_table(["metric", *names], rows) + "\n"
    changed = differing([flat_settings(run.settings) for run in runs])
    if changed:
        shown = [[name, *map(_short, values)] for name, values in list(changed.items())[:_MAX_SETTINGS]]
        text += "\nSettings that differ.\n\n" + markdown_table(["setting", *names], shown) + "\n"
    if len(changed) > _MAX_SETTINGS:
        text += f"\n{len(changed) - _MAX_SETTINGS} further settings differ.\n"
    return text


def _order(metric: str) -> tuple[int, str]:
    name = metric.split("/")[-1]
    return (_MAIN_METRICS.index(name) if name in _MAIN_METRICS else len(_MAIN_METRICS), metric)


def _steps(run: Run) -> int:
    return max((points[-1][0] for points in run.series.values() if points), default=0)


def _first_last(run: Run, name: str) -> str:
    points = run.series.get(name)
    if not points:
        return "-"
    step, highest = max(points, key=lambda point: point[1])
    return f"{figure_text(points[0][1])} → {figure_text(points[-1][1])} ({figure_text(highest)} at {step})"


def _short(value: object) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 60 else text[:59] + "…"
