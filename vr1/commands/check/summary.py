"""Rows -> what is said of a split: counts, histograms, prompt lengths, anomalies."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vr1.commands.check.rows import Row
from vr1.data.validation import Problems

OBJECTS = (0, 1, 2, 3, 5, 10, 20, 30, 100)
SIDES = (0, 8, 16, 32, 64, 128, 256, 512)
_BAR = 40
_SHOWN_CATEGORIES = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What is known of one split.

    Attributes:
        name: the split.
        rows: its records.
        limit: longest prompt that is allowed, in tokens.
        problems: every anomaly, by kind.
        notes: what was put right or left out when the data were opened.
    """

    name: str
    rows: Sequence[Row]
    limit: int
    problems: Problems
    notes: Sequence[str] = ()

    def text(self) -> str:
        """All of it as lines to print."""
        readable = [row for row in self.rows if row.tokens]
        counts = [len(row.labels) for row in readable]
        sides = [side for row in readable for side in row.sides]
        seen = [side for row in readable for side in row.seen_sides]
        lines = [
            f"{self.name}: {len(self.rows):,} records, {sum(counts):,} objects"
            f" ({counts.count(0):,} records without one), {sum(row.crowd for row in readable):,} crowd regions"
        ]
        sets = Counter(row.set_name for row in readable)
        if set(sets) != {""}:
            lines.append("sets: " + ", ".join(f"{name} {count:,}" for name, count in sorted(sets.items())))
        lines.append("categories: " + _most(Counter(label for row in readable for label in row.labels)))
        lines += ["objects a record:", *_bars(counts, OBJECTS)]
        lines += ["square root of a box's area, pixels of the image:", *_bars(sides, SIDES)]
        lines += ["the same, pixels of the model's input:", *_bars(seen, SIDES)]
        if readable:
            longest = max(readable, key=lambda row: row.tokens)
            mean = sum(row.tokens for row in readable) / len(readable)
            lines.append(
                f"prompts: {mean:.0f} tokens on average, the longest {longest.tokens} of {self.limit}"
                f" ({longest.origin})"
            )
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, "anomalies: none" if not len(self.problems) else anomalies(self.problems)])


def anomalies(problems: Problems) -> str:
    """Every anomaly, a line each."""
    lines = [f"anomalies: {len(problems)}"]
    for kind, places in problems.by_kind.items():
        lines += [f"  {kind}: {len(places)}", *(f"    {place}" for place in places)]
    return "\n".join(lines)


def bins(values: Sequence[float], edges: Sequence[float]) -> list[tuple[str, int]]:
    """How many values lie from each edge to below the next, the last one open; empty bins at the end left out.

    Example:
        >>> bins([0, 1, 4, 7], (0, 1, 2, 5))
        [('0', 1), ('1', 1), ('2-4', 1), ('5+', 1)]
    """
    counts = np.histogram(values, [*edges, np.inf])[0].tolist()
    names = [f"{low}" if high == low + 1 else f"{low}-{high - 1}" for low, high in pairwise(edges)]
    found = list(zip([*names, f"{edges[-1]}+"], counts, strict=True))
    while len(found) > 1 and not found[-1][1]:
        found.pop()
    return found


def _bars(values: Sequence[float], edges: Sequence[int]) -> list[str]:
    found = bins(values, edges)
    most = max((count for _, count in found), default=0) or 1
    return [f"  {name:>7} {count:>9,} {'#' * round(_BAR * count / most)}" for name, count in found]


def _most(counts: Counter[str]) -> str:
    shown = ", ".join(f"{name} {count:,}" for name, count in counts.most_common(_SHOWN_CATEGORIES))
    more = len(counts) - _SHOWN_CATEGORIES
    return (shown or "none") + (f", and {more} more" if more > 0 else "")
