"""A summary of a data set from a sample of its records: how many, how large, what is on them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from vr1.records import DetectionRecord

_NAMED = 12


def summarise(source: Sequence[DetectionRecord], sample: int = 64) -> dict[str, Any]:
    """Count what is in a source.

    Args:
        source: records by index.
        sample: how many of them are opened, evenly spread; decoding all of them can take longer than a training.

    Returns:
        ``records`` (all of them), and of the sample: ``sampled``, ``unreadable``, ``boxes`` (mean per image),
        ``without_boxes`` (images), ``width`` and ``height`` (smallest and largest, pixels) and ``labels`` (the most
        frequent, with their counts).

    Example:
        >>> from vr1.drawing.examples import example_finding
        >>> summarise([example_finding().record])["boxes"]
        3.0
    """
    total = len(source)
    chosen = sorted({index * total // max(1, min(sample, total)) for index in range(min(sample, total))})
    records, unreadable = [], 0
    for index in chosen:
        try:
            records.append(source[index])
        except (ValueError, OSError):
            # Training decides what a damaged image means; a summary of what there is must not end it.
            unreadable += 1
    labels = Counter(label for record in records for label in record.labels)
    found: dict[str, Any] = {"records": total, "sampled": len(records), "unreadable": unreadable}
    if not records:
        return found
    widths, heights = zip(*(record.image_size for record in records), strict=True)
    return found | {
        "boxes": round(sum(len(record.labels) for record in records) / len(records), 2),
        "without_boxes": sum(not record.labels for record in records),
        "width": [min(widths), max(widths)],
        "height": [min(heights), max(heights)],
        "labels": dict(labels.most_common(_NAMED)),
        "distinct_labels": len(labels),
    }
