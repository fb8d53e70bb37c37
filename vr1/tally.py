"""Sums over many rewarded answers, and the table that shows them."""

import time
from collections.abc import Iterable, Mapping, Sequence

from vr1.records import Match


class Tally:
    """Counts answers, boxes and rewards in constant memory; as a text it is a table.

    Args:
        names: the rewards to sum up, in the order of the table.

    Attributes:
        appendix: a text to show below the table.

    Example:
        >>> print(str(Tally(["recall", "total"])).splitlines()[0])
        answers                0
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.sums = dict.fromkeys(names, 0.0)
        self.answers = self.well_formed = self.valid = self.parsed = self.matched = self.targets = 0
        self.started = time.perf_counter()
        self.appendix = ""

    def add(self, scores: Mapping[str, Sequence[float]], matches: Sequence[Match]) -> None:
        """Add the scores of n answers, by reward, and their n matches."""
        for name, values in scores.items():
            self.sums[name] += sum(values)
        self.answers += len(matches)
        for match in matches:
            self.well_formed += match.detections.well_formed
            self.valid += match.detections.valid
            self.parsed += match.num_predicted
            self.matched += len(match.overlap)
            self.targets += match.num_targets

    @property
    def means(self) -> dict[str, float]:
        """Mean of each reward."""
        return {name: total / max(self.answers, 1) for name, total in self.sums.items()}

    @property
    def answers_per_second(self) -> float:
        """Since the tally was made."""
        return self.answers / max(time.perf_counter() - self.started, 1e-9)

    def progress(self) -> str:
        """One line to show while there is more to come."""
        return f"{self.answers:,} answers, {self.answers_per_second:,.0f} a second"

    def __str__(self) -> str:
        answers = max(self.answers, 1)
        rows = {
            "answers": f"{self.answers:,}",
            "follow template": f"{self.well_formed / answers:.2%}",
            "valid": f"{self.valid / answers:.2%}",
            "boxes parsed": f"{self.parsed:,}",
            "boxes matched": f"{self.matched:,}",
            "boxes true": f"{self.targets:,}",
            **{f"mean {name}": f"{mean:.4f}" for name, mean in self.means.items()},
            "answers a second": f"{self.answers_per_second:,.0f}",
        }
        left, right = max(map(len, rows)), max(map(len, rows.values()))
        table = "\n".join(f"{name:<{left}}  {value:>{right}}" for name, value in rows.items())
        return f"{table}\n\n{self.appendix}" if self.appendix else table
