"""The bounds of COCO's segmentations: polygons and run-length encodings."""

import re
from typing import Any

import numpy as np

from vr1.data.annotations import Corners
from vr1.data.validation import numbers

# Characters of 6 bits from "0", of which the last one of a number lacks the highest: pycocotools reads on without it.
_COMPRESSED = re.compile(r"[0-o]*[0-O]")


def segmentation_bounds(segmentation: Any, size: tuple[int, int] | None) -> Corners | None:
    """The box around a segmentation.

    Args:
        segmentation: a list of polygons ``[x1, y1, x2, y2, x3, y3, ...]``, or a run-length encoding with ``size``
            (height, width) and ``counts``, a list or pycocotools' text.
        size: width and height of its image, which an encoding must have; None does not compare them.

    Returns:
        The corners in pixels, or None where there is nothing, or something else.

    Source: https://cocodataset.org/#format-data; pycocotools, ``mask``.

    Example:
        >>> segmentation_bounds([[1, 2, 9, 2, 5, 8], [5, 5, 7, 5, 7, 12]], (20, 20))
        (1, 2, 9, 12)
        >>> segmentation_bounds({"size": [4, 5], "counts": [6, 2, 2, 2, 8]}, (5, 4))
        (1.0, 2.0, 3.0, 4.0)
    """
    if isinstance(segmentation, dict):
        return _encoding_bounds(segmentation, size)
    if not isinstance(segmentation, list) or not segmentation:
        return None
    # Some exporters write a single polygon without the list around it.
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    across: list[float] = []
    down: list[float] = []
    for polygon in polygons:
        points = numbers(polygon, len(polygon)) if isinstance(polygon, list) else None
        if points is None or len(points) < 6 or len(points) % 2:
            return None
        across += points[::2]
        down += points[1::2]
    return min(across), min(down), max(across), max(down)


def _encoding_bounds(encoding: dict[str, Any], size: tuple[int, int] | None) -> Corners | None:
    # Imported here: few files need it.
    from pycocotools import mask

    shape, counts = numbers(encoding.get("size"), 2), encoding.get("counts")
    if shape is None or (size is not None and (shape[1], shape[0]) != size):
        return None
    height, width = int(shape[0]), int(shape[1])
    if isinstance(counts, list):
        runs = numbers(counts, len(counts))
        # Checked here, since pycocotools reads beyond its memory where they are wrong.
        if runs is None or any(run < 0 or run != int(run) for run in runs) or sum(runs) != height * width:
            return None
        encoded = mask.frPyObjects({"size": [height, width], "counts": [int(run) for run in runs]}, height, width)
    elif isinstance(counts, str) and _COMPRESSED.fullmatch(counts):
        encoded = {"size": [height, width], "counts": counts.encode()}
    else:
        return None
    x, y, w, h = np.asarray(mask.toBbox(encoded), np.float64).tolist()
    return (x, y, x + w, y + h) if w > 0 and h > 0 else None
