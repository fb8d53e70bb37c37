"""Rows -> the text about a split: counts, histograms, prompt lengths, anomalies, remarks."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vr1.commands.check.rows import Row
from vr1.data.annotations import BOX_FAULTS
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
        answer_limit: longest completion, in tokens; None where nothing is sampled.
        problems: every anomaly, by kind: training stops at such a record, or leaves it out.
        remarks: what is unusual but no reason to stop, by kind.
        notes: what was changed or left out when the data were opened.
    """

    name: str
    rows: Sequence[Row]
    limit: int
    problems: Problems
    remarks: Problems
    answer_limit: int | None = None
    notes: Sequence[str] = ()

    def text(self, shown_remarks: int | None = None) -> str:
        """All of it as lines to print.

        Args:
            shown_remarks: how many records of each kind of remark to name; None names all.
        """
        readable = [row for row in self.rows if row.tokens]
        counts = [len(row.labels) for row in readable]
        sides = [side for row in readable for side in row.sides]
        input_sides = [side for row in readable for side in row.input_sides]
        lines = [
            f"{self.name}: {len(self.rows):,} records, {sum(counts):,} objects"
            f" ({counts.count(0):,} records without one), {sum(row.crowd for row in readable):,} crowd regions"
        ]
        sets = Counter(row.set_name for row in readable)
        if set(sets) != {""}:
            lines.append("sets: " + ", ".join(f"{name} {count:,}" for name, count in sorted(sets.items())))
        if further := sum(row.images - 1 for row in readable):
            several = sum(row.images > 1 for row in readable)
            lines.append(f"records with several images: {several:,}, {further:,} beside those that the boxes are on")
        lines.append("categories: " + _most_common(Counter(label for row in readable for label in row.labels)))
        lines += ["objects a record:", *_bars(counts, OBJECTS)]
        lines += ["square root of a box's area, pixels of the image:", *_bars(sides, SIDES)]
        lines += ["the same, pixels of the model's input:", *_bars(input_sides, SIDES)]
        if readable:
            longest = max(readable, key=lambda row: row.tokens)
            mean = sum(row.tokens for row in readable) / len(readable)
            lines.append(
                f"prompts: {mean:.0f} tokens on average, the longest {longest.tokens} of {self.limit}"
                f" ({longest.origin})"
            )
            longest = max(readable, key=lambda row: row.answer_tokens)
            mean = sum(row.answer_tokens for row in readable) / len(readable)
            limit = "" if self.answer_limit is None else f" of {self.answer_limit}"
            lines.append(
                f"true answers: {mean:.0f} tokens on average, the longest {longest.answer_tokens}{limit}"
                f" ({longest.origin})"
            )
        lines += [f"note: {note}" for note in self.notes]
        if len(self.remarks):
            lines += listed("remarks", self.remarks, shown_remarks)
        return "\n".join([*lines, *(listed("anomalies", self.problems) if len(self.problems) else ["anomalies: none"])])

    def verdict(self) -> str:
        """The number of anomalies of the split; empty where there is none.

        Example:
            >>> problems = Problems("train")
            >>> problems.add("box of zero size", "annotation 7 on a.jpg")
            >>> Summary(name="train", rows=[], limit=9, problems=problems, remarks=Problems("train")).verdict()
            '1 faulty box in train'
        """
        boxes = sum(problem.kind in BOX_FAULTS for problem in self.problems)
        others = len(self.problems) - boxes
        parts = [
            f"{count} {what}{plural if count > 1 else ''}"
            for count, what, plural in ((boxes, "faulty box", "es"), (others, "other fault" if boxes else "fault", "s"))
            if count
        ]
        return f"{' and '.join(parts)} in {self.name}" if parts else ""


def listed(title: str, problems: Problems, shown: int | None = None) -> list[str]:
    """Lines with the count of each kind and its records.

    Args:
        title: the heading.
        problems: what to list.
        shown: how many records of each kind to name; None names all.

    Example:
        >>> problems = Problems("train")
        >>> for name in "abc":
        ...     problems.add("greyscale image", f"{name}.jpg")
        >>> for line in listed("remarks", problems, shown=1):
        ...     print(line)
        remarks: 3
          greyscale image: 3
            a.jpg
            and 2 more, see check.txt
    """
    lines = [f"{title}: {len(problems)}"]
    for kind, places in problems.by_kind.items():
        named = places if shown is None else places[:shown]
        lines += [f"  {kind}: {len(places)}", *(f"    {place}" for place in named)]
        if more := len(places) - len(named):
            lines.append(f"    and {more} more, see check.txt")
    return lines


def bins(values: Sequence[float], edges: Sequence[float]) -> list[tuple[str, int]]:
    """How many values are in each bin, from its edge to below the next; empty bins at the end are left out.

    Args:
        values: the values, none below the first edge.
        edges: lower edges of the bins, ascending integers; the last bin is open.

    Example:
        >>> bins([0, 1, 4, 7], (0, 1, 2, 5))
        [('0', 1), ('1', 1), ('2-4', 1), ('5+', 1)]
    """
    counts = np.histogram(values, [*edges, np.inf])[0].tolist()
    names = [f"{low}" if high == low + 1 else f"{low}-{high - 1}" for low, high in pairwise(edges)]
    named = list(zip([*names, f"{edges[-1]}+"], counts, strict=True))
    while len(named) > 1 and not named[-1][1]:
        named.pop()
    return named


def _bars(values: Sequence[float], edges: Sequence[int]) -> list[str]:
    named = bins(values, edges)
    most = max((count for _, count in named), default=0) or 1
    return [f"  {name:>7} {count:>9,} {'#' * round(_BAR * count / most)}" for name, count in named]


def _most_common(counts: Counter[str]) -> str:
    shown = ", ".join(f"{name} {count:,}" for name, count in counts.most_common(_SHOWN_CATEGORIES))
    more = len(counts) - _SHOWN_CATEGORIES
    return (shown or "none") + (f", and {more} more" if more > 0 else "")
