"""Collects what is wrong with a data set, so that a user hears of all of it at once."""

from collections.abc import Mapping
from types import MappingProxyType

SHOWN = 5


class Problems:
    """Faults found in one data set, by kind, in the order in which they were found.

    Example:
        >>> problems = Problems("train.json")
        >>> problems.add("box of zero size", "annotation 7 on a.jpg")
        >>> problems.add("box of zero size", "annotation 9 on b.jpg")
        >>> len(problems)
        2
        >>> print(problems)
        train.json: 2 problems
          box of zero size: 2 (annotation 7 on a.jpg; annotation 9 on b.jpg)
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._found: dict[str, list[str]] = {}

    def add(self, kind: str, where: str) -> None:
        """Note one fault: its kind, and the record that has it."""
        self._found.setdefault(kind, []).append(where)

    def __len__(self) -> int:
        return sum(len(where) for where in self._found.values())

    @property
    def by_kind(self) -> Mapping[str, list[str]]:
        """The records at fault, by kind of fault."""
        return MappingProxyType(self._found)

    def __str__(self) -> str:
        """One line a kind: its count and the first few records."""
        lines = [f"{self.source}: {len(self)} problem{'s' if len(self) != 1 else ''}"]
        for kind, where in self._found.items():
            more = f"; and {len(where) - SHOWN} more" if len(where) > SHOWN else ""
            lines.append(f"  {kind}: {len(where)} ({'; '.join(where[:SHOWN])}{more})")
        return "\n".join(lines)


class FaultyRecordsError(ValueError):
    """Records of a data set cannot be used: the message names the first few of each kind, ``problems`` all of them."""

    def __init__(self, problems: Problems) -> None:
        super().__init__(f"{problems}\nMend the data, or set bad_records: skip to leave these out.")
        self.problems = problems
