"""The figures of each class before and after training."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vr1.runs.tables import figure_text, markdown_table

BOXES, AP = "objects", "map"


@dataclass(frozen=True)
class ClassMeasurement:
    """The figures of each class at one optimizer step.

    Attributes:
        step: the number of optimizer steps before the measurement.
        figures: by class: ``map``, ``map_50``, ``ar_100`` (-1 without a true box) and ``objects``, the true boxes.
    """

    step: int
    figures: dict[str, dict[str, float]]


@dataclass(frozen=True)
class ClassComparison:
    """The figures of each class at the first and the last validation of a training, and at the best one.

    Args:
        first: of the untrained model if it was measured; None if there was no validation.
        last: None if there was one validation or none.
        best: None if no metric is monitored.

    Example:
        >>> first = ClassMeasurement(0, {"cat": {"map": 0.1, "objects": 9.0}, "dog": {"map": 0.4, "objects": 2.0}})
        >>> last = ClassMeasurement(50, {"cat": {"map": 0.3, "objects": 9.0}, "dog": {"map": 0.35, "objects": 2.0}})
        >>> print(ClassComparison(first, last).markdown())
        | class | boxes | AP before | AP after (step 50) | change |
        | :-- | --: | --: | --: | --: |
        | cat | 9 | 0.100 | 0.300 | +0.200 |
        | dog | 2 | 0.400 | 0.350 | -0.050 |
        <BLANKLINE>
    """

    first: ClassMeasurement | None = None
    last: ClassMeasurement | None = None
    best: ClassMeasurement | None = None

    @property
    def columns(self) -> list[str]:
        """Headings of :attr:`rows`."""
        columns = ["class", "boxes"]
        if self.first:
            columns.append(f"AP at step {self.first.step}" if self.first.step else "AP before")
        if self.last:
            columns += [f"AP after (step {self.last.step})", "change"]
        return columns + ([f"AP best (step {self.best.step})"] if self.best else [])

    @property
    def rows(self) -> list[list[str]]:
        """One row of texts for each class: those that gained most first, those without a true box last."""
        names = dict.fromkeys(name for item in (self.first, self.last) if item for name in item.figures)
        ordered = sorted(names, key=lambda name: (-self._change(name), -self._boxes(name), name))
        return [self._row(name) for name in ordered]

    def markdown(self) -> str:
        """The table as Markdown; empty without a class."""
        return markdown_table(self.columns, self.rows) + "\n" if self.rows else ""

    def as_dict(self) -> dict[str, Any]:
        """Plain types for JSON; a measurement that does not exist is None."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ClassComparison":
        """Restore what :meth:`as_dict` returned; an empty mapping gives an empty comparison.

        Raises:
            TypeError: a measurement has other fields.
        """
        parts = (values.get(name) for name in ("first", "last", "best"))
        return cls(*(None if part is None else ClassMeasurement(**part) for part in parts))

    def _row(self, name: str) -> list[str]:
        measured = [_value(item, name, AP) for item in (self.first, self.last) if item]
        change = [self._change_text(name)] if self.last else []
        best = [_value(self.best, name, AP)] if self.best else []
        texts = [[figure_text(value) for value in values] for values in (measured, best)]
        return [name, f"{self._boxes(name):.0f}", *texts[0], *change, *texts[1]]

    def _boxes(self, name: str) -> float:
        return _value(self.first, name, BOXES) or _value(self.last, name, BOXES) or 0.0

    def _change(self, name: str) -> float:
        before, after = _value(self.first, name, AP), _value(self.last, name, AP)
        if before is None or (self.last and after is None):
            return float("-inf")
        return 0.0 if after is None else after - before

    def _change_text(self, name: str) -> str:
        change = self._change(name)
        return "-" if change == float("-inf") else f"{change:+.3f}"


def _value(measured: ClassMeasurement | None, name: str, figure: str) -> float | None:
    """A figure of a class; None without the class, or without a true box to measure it by."""
    value = -1.0 if measured is None else measured.figures.get(name, {}).get(figure, -1.0)
    return None if value < 0 else value
