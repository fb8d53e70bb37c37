"""Tables in Markdown, and the table that compares metrics before and after training."""

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""A Markdown table whose first column is aligned left and all others right.

    Args:
        head: text of each column's heading.
        rows: texts of each row.

    Example:
        >>> print(markdown_table(["metric", "value"], [["val/map", "0.25"], ["a|b", "-"]]))
        | metric | value |
        | :-- | --: |
        | val/map | 0.25 |
        | a\|b | - |
    """
    lines = [head, [":--", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines)


def figure_text(value: float | None) -> str:
    """A figure as every table and the console show it: three digits after the point, at least.

    Args:
        value: None if it was not measured.

    Example:
        >>> [figure_text(value) for value in (0.25, 0.0, 12.3456, 0.0000123, None)]
        ['0.250', '0.000', '12.346', '1.2e-05', '-']
    """
    if value is None:
        return "-"
    return f"{value:.2g}" if 0 < abs(value) < 0.0005 else f"{value:.3f}"


@dataclass(frozen=True)
class Measurement:
    """Metrics at one optimizer step.

    Attributes:
        step: the number of optimizer steps before the measurement.
        metrics: value by name.
    """

    step: int
    metrics: dict[str, float]

    def state_dict(self) -> dict[str, Any]:
        """Plain types; ``Measurement(**state)`` restores them."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """The metrics before and after training, and the best in between.

    Args:
        before: the untrained model; None if it was not measured.
        after: the last measurement; None if there was none.
        best: the best measurement; None if no metric is monitored.
        best_by: the monitored metric.
        notes: sentences for the reader, shown below the table.

    Example:
        >>> table = Comparison(Measurement(0, {"val/map": 0.1}), Measurement(50, {"val/map": 0.35}))
        >>> print(table.markdown())
        | metric | before | after (step 50) | change |
        | :-- | --: | --: | --: |
        | val/map | 0.100 | 0.350 | +0.250 |
        <BLANKLINE>
    """

    before: Measurement | None
    after: Measurement | None
    best: Measurement | None = None
    best_by: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """Headings of :attr:`rows`."""
        after = f"after (step {self.after.step})" if self.after else "after"
        best = [f"best by {self.best_by} (step {self.best.step})"] if self.best else []
        return ["metric", "before", after, "change", *best]

    @property
    def rows(self) -> list[list[str]]:
        """One row of texts per metric, in the order of logging."""
        measured = [item.metrics for item in (self.after, self.before) if item]
        rows = []
        for name in dict.fromkeys(name for metrics in measured for name in metrics):
            before, after, best = (item.metrics.get(name) if item else None for item in self._measurements)
            change = None if before is None or after is None else after - before
            cells = [name, figure_text(before), figure_text(after), "-" if change is None else f"{change:+.3f}"]
            rows.append([*cells, figure_text(best)] if self.best else cells)
        return rows

    @property
    def _measurements(self) -> tuple[Measurement | None, ...]:
        return self.before, self.after, self.best

    def markdown(self) -> str:
        """The table and its notes as Markdown."""
        return "\n".join([markdown_table(self.columns, self.rows), *(f"\n{note}" for note in self.notes)]) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """Plain types for JSON; a measurement that does not exist is None."""
        before, after, best = (item.state_dict() if item else None for item in self._measurements)
        return {"before": before, "after": after, "best": best, "best_by": self.best_by or None, "notes": self.notes}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Comparison":
        """Restore what :meth:`as_dict` returned; an empty mapping gives an empty comparison.

        Raises:
            TypeError: a measurement has other fields.
        """
        before, after, best = (
            None if values.get(key) is None else Measurement(**values[key]) for key in ("before", "after", "best")
        )
        return cls(before, after, best, values.get("best_by") or "", list(values.get("notes") or []))

    def show(self) -> None:
        """Print the table, with rich if it is installed, else as Markdown."""
        if importlib.util.find_spec("rich") is None:
            print(self.markdown())
            return
        from rich.console import Console
        from rich.table import Table

        table = Table(title="Before and after training")
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="right" if index else "left", no_wrap=index == 0)
        for row in self.rows:
            table.add_row(*row)
        console = Console()
        console.print(table)
        for note in self.notes:
            console.print(note, style="yellow", markup=False, highlight=False)
