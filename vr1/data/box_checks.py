"""What makes the box of an annotation unusable, and how one that sticks out of its image is cut."""

import math
from collections.abc import Sequence

Corners = tuple[float, float, float, float]

_ROUNDING = 1.0  # pixels by which exporters let boxes stick out; more than that is reported


def box_fault(box: Sequence[float], size: tuple[float, float]) -> str | None:
    """What is wrong with the corners ``[x1, y1, x2, y2]`` of a box on an image of ``size``, or None.

    Example:
        >>> box_fault((5, 5, 5, 9), (10, 10)), box_fault((1, 1, 2, 2), (10, 10))
        ('box of zero size', None)
    """
    if not all(map(math.isfinite, box)):
        return "box with NaN or infinite numbers"
    x1, y1, x2, y2 = box
    if x2 < x1 or y2 < y1:
        return "box of negative size"
    if x2 == x1 or y2 == y1:
        return "box of zero size"
    if x1 >= size[0] or y1 >= size[1] or x2 <= 0 or y2 <= 0:
        return "box wholly outside its image"
    return None


class BoxCutter:
    """Cuts boxes to their images, and counts those that stuck out by more than exporters' rounding.

    Example:
        >>> cut = BoxCutter()
        >>> cut((1, 2, 50, 20), (40, 30)), cut.notes()
        ((1, 2, 40, 20), ['1 boxes stuck out of their image by more than 1 px and were cut to it'])
    """

    def __init__(self) -> None:
        self._stuck_out = 0

    def __call__(self, box: Sequence[float], size: tuple[float, float]) -> Corners:
        """The part of a box that lies inside an image of ``size``; `box_fault` found the box sound."""
        (x1, y1, x2, y2), (width, height) = box, size
        self._stuck_out += max(-x1, -y1, x2 - width, y2 - height) > _ROUNDING
        return max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)

    def notes(self) -> list[str]:
        """What was put right."""
        if not self._stuck_out:
            return []
        return [f"{self._stuck_out} boxes stuck out of their image by more than {_ROUNDING:g} px and were cut to it"]
