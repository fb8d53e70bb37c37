"""Tables in Markdown, and the table that compares metrics before and after training."""

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""Texts as a table, its first column to the left and all others, which are numbers mostly, to the right.

    Example:
        >>> print(markdown_table(["metric", "value"], [["val/map", "0.25"], ["a|b", "-"]]))
        | metric | value |
        | :-- | --: |
        | val/map | 0.25 |
        | a\|b | - |
    """
    lines = [head, [":--", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines)


@dataclass(frozen=True)
class Measurement:
    """Metrics by name, and the optimizer step after which they were measured."""

    step: int
    metrics: dict[str, float]

    def state_dict(self) -> dict[str, Any]:
        """Plain types, from which ``Measurement(**state)`` is this one again."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """Before, after, and the best in between.

    Args:
        before: the untrained model, if it was measured.
        after: the last measurement.
        best: the best measurement, if something says which metric counts.
        best_by: the metric that says so.
        notes: what a reader must know besides.

    Example:
        >>> table = Comparison(Measurement(0, {"val/map": 0.1}), Measurement(50, {"val/map": 0.35}))
        >>> print(table.markdown())
        | metric | before | after (step 50) | change |
        | :-- | --: | --: | --: |
        | val/map | 0.1000 | 0.3500 | +0.2500 |
        <BLANKLINE>
    """

    before: Measurement | None
    after: Measurement | None
    best: Measurement | None = None
    best_by: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """Headings of the table."""
        after = f"after (step {self.after.step})" if self.after else "after"
        best = [f"best by {self.best_by} (step {self.best.step})"] if self.best else []
        return ["metric", "before", after, "change", *best]

    @property
    def rows(self) -> list[list[str]]:
        """One row of texts per metric, in the order in which the metrics were logged."""
        measured = [item.metrics for item in (self.after, self.before) if item]
        rows = []
        for name in dict.fromkeys(name for metrics in measured for name in metrics):
            before, after, best = (item.metrics.get(name) if item else None for item in self._measurements)
            change = None if before is None or after is None else after - before
            cells = [name, _number(before), _number(after), "-" if change is None else f"{change:+.4f}"]
            rows.append([*cells, _number(best)] if self.best else cells)
        return rows

    @property
    def _measurements(self) -> tuple[Measurement | None, ...]:
        return self.before, self.after, self.best

    def markdown(self) -> str:
        """The table and its notes as Markdown."""
        return "\n".join([markdown_table(self.columns, self.rows), *(f"\n{note}" for note in self.notes)]) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """The same for programs; metrics that were not measured are null."""
        before, after, best = (item.state_dict() if item else None for item in self._measurements)
        return {"before": before, "after": after, "best": best, "best_by": self.best_by or None, "notes": self.notes}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "Comparison":
        """What :meth:`as_dict` returned; from nothing, a comparison of nothing.

        Raises:
            TypeError: if it is none.
        """
        before, after, best = (
            None if found.get(key) is None else Measurement(**found[key]) for key in ("before", "after", "best")
        )
        return cls(before, after, best, found.get("best_by") or "", list(found.get("notes") or []))

    def show(self) -> None:
        """Print the table: with rich where it is installed, else as Markdown."""
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


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
