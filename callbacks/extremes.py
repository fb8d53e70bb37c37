"""The best and the worst answers of an evaluation, kept while it goes on."""

import heapq
from collections.abc import Iterable, Sequence

from PIL import Image

from vr1.drawing import draw_tile
from vr1.ranks import gather
from vr1.records import Finding

_Rank = tuple[float, int, str]


def quality(finding: Finding) -> float:
    """How well the boxes lie: the overlaps of the matched pairs over the number of boxes, predicted or true.

    Whichever are more, so that missing and needless boxes cost alike; 1 where there is nothing, and nothing is found.

    Example:
        >>> from vr1.drawing.examples import example_finding
        >>> quality(example_finding(empty=True))
        0.0
    """
    match = finding.match
    boxes = max(match.num_predicted, match.num_targets)
    return float(match.overlap.clip(min=0.0).sum()) / boxes if boxes else 1.0


class Extremes:
    """The answers of highest and of lowest `quality`; among equals, those with more true boxes.

    No more images are held than will be shown.

    Args:
        size: how many of each.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._best: dict[_Rank, Finding] = {}
        self._worst: dict[_Rank, Finding] = {}

    def add(self, findings: Iterable[Finding]) -> None:
        """Take in some answers; one that was seen before, as a distributed sampler repeats some, changes nothing."""
        for finding in findings:
            value, objects = quality(finding), finding.match.num_targets
            name = f"{finding.record.origin} {finding.record.image_id} {finding.instruction}"
            self._best[-value, -objects, name] = self._worst[value, -objects, name] = finding
        self._best, self._worst = self._first(self._best), self._first(self._worst)

    def tiles(self, side: int) -> tuple[list[Image.Image], list[Image.Image]]:
        """Drawings of the best and of the worst answers of all processes; to be called on all of them."""
        kept = [
            {rank: draw_tile(finding, side) for rank, finding in found.items()} for found in (self._best, self._worst)
        ]
        shares: Sequence[list[dict[_Rank, Image.Image]]] = gather(kept)
        best, worst = ({rank: tile for share in shares for rank, tile in share[part].items()} for part in (0, 1))
        return [best[rank] for rank in sorted(best)[: self.size]], [worst[rank] for rank in sorted(worst)[: self.size]]

    def _first(self, found: dict[_Rank, Finding]) -> dict[_Rank, Finding]:
        return {rank: found[rank] for rank in heapq.nsmallest(self.size, found)}
