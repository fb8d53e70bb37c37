"""The results of a sweep: a Markdown table, a CSV file and a figure."""

import csv
from collections.abc import Sequence
from pathlib import Path

from vr1.commands.sweep.plan import Plan
from vr1.commands.sweep.trial import Trial
from vr1.runs.tables import figure_text, markdown_table


def ranked(plan: Plan, trials: Sequence[Trial]) -> list[Trial]:
    """The trials, best first, and those without a result last."""
    sign = -1.0 if plan.goal == "maximize" else 1.0
    return sorted(trials, key=lambda trial: (trial.value is None, sign * (trial.value or 0.0), trial.number))


def markdown(plan: Plan, trials: Sequence[Trial]) -> str:
    """The table of trials, best first, and the errors of crashed ones.

    Example:
        >>> from vr1.commands.sweep.plan import Plan
        >>> plan = Plan(name="", method="grid", metric="val/map", goal="maximize", command=(), program="", text="",
        ...     limit=None, parameters={"lr": {}})
        >>> print(markdown(plan, [Trial(number=0, parameters={"lr": 0.1}, state="finished", value=0.5, seconds=61)]))
        | trial | lr | val/map | state | seconds |
        | :-- | --: | --: | --: | --: |
        | 0 | 0.1 | 0.500 | finished | 61 |
        <BLANKLINE>
    """
    head = ["trial", *plan.parameters, plan.metric, "state", "seconds"]
    rows = []
    for trial in ranked(plan, trials):
        value = figure_text(trial.value)
        settings = [str(trial.parameters.get(name, "")) for name in plan.parameters]
        rows.append([str(trial.number), *settings, value, trial.state, f"{trial.seconds:.0f}"])
    problems = [f"\ntrial {trial.number} crashed: {trial.problem}" for trial in trials if trial.state == "crashed"]
    return "\n".join([markdown_table(head, rows), *problems]) + "\n"


def write_results(folder: Path, plan: Plan, trials: Sequence[Trial]) -> str:
    """Write ``results.md``, ``results.csv`` and, if a trial has finished, ``results.png``.

    Returns:
        The table as Markdown.
    """
    # Imported here, so that --help does not wait for matplotlib.
    from vr1.commands.sweep.figure import draw_trials

    text = markdown(plan, trials)
    (folder / "results.md").write_text(text, encoding="utf-8")
    with (folder / "results.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["trial", *plan.parameters, plan.metric, "state", "seconds", "problem"])
        for trial in trials:
            settings = [trial.parameters.get(name) for name in plan.parameters]
            rows.writerow([trial.number, *settings, trial.value, trial.state, trial.seconds, trial.problem])
    figure = draw_trials(plan, trials)
    if figure is not None:
        figure.save(folder / "results.png")
    return text
