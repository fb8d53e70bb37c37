"""Boxes as corner arrays: change of frame, pairwise IoU and GIoU.

Shape letters: N and M boxes. All boxes are ``[x1, y1, x2, y2]``.
"""

import numpy as np

from vr1.records import Boxes


def rescale(boxes: Boxes, from_size: tuple[float, float], to_size: tuple[float, float]) -> Boxes:
    """Carry boxes from an image of one size to the same image at another size.

    Args:
        boxes: ``[N, 4]`` corners in pixels of the image at ``from_size``.
        from_size: width and height in pixels.
        to_size: width and height in pixels.

    Returns:
        ``[N, 4]`` corners in pixels of the image at ``to_size``.

    Example:
        >>> from vr1.records import as_boxes
        >>> rescale(as_boxes([[1, 2, 3, 4]]), (10, 10), (20, 30))
        array([[ 2.,  6.,  6., 12.]])
    """
    x, y = to_size[0] / from_size[0], to_size[1] / from_size[1]
    return boxes * np.array([x, y, x, y])
