"""A made-up finding to try the drawings on: three shapes on a small image."""

import numpy as np
from PIL import Image, ImageDraw

from vr1.records import DetectionRecord, Detections, Finding, Match, Targets, as_boxes


def example_finding(*, empty: bool = False) -> Finding:
    """Three shapes on 112 x 84 pixels, of which a good, a fair and no prediction are made (or none at all).

    Example:
        >>> len(example_finding().detections), len(example_finding(empty=True).detections)
        (3, 0)
    """
    image = Image.new("RGB", (112, 84), (238, 240, 228))
    draw = ImageDraw.Draw(image)
    draw.ellipse((10, 10, 40, 40), fill=(206, 66, 87))
    draw.rectangle((60, 15, 95, 45), fill=(67, 97, 238))
    draw.polygon(((30, 76), (44, 52), (58, 76)), fill=(46, 139, 87))
    truth = as_boxes([[10, 10, 41, 41], [60, 15, 96, 46], [30, 52, 59, 77]])
    record = DetectionRecord(
        image=image,
        boxes_xyxy=truth,
        labels=("red circle", "blue square", "green triangle"),
        categories=("red circle", "blue square", "green triangle"),
        image_id=0,
        origin="example:0",
        areas=(truth[:, 2] - truth[:, 0]) * (truth[:, 3] - truth[:, 1]),
        crowd=np.zeros(3, bool),
    )
    boxes = as_boxes([] if empty else [[11, 9, 42, 41], [66, 19, 99, 50], [80, 60, 108, 80]])
    labels = () if empty else ("red circle", "blue square", "blue square")
    detections = Detections(
        boxes_xyxy=boxes, labels=labels, scores=np.full(len(labels), 0.99), well_formed=not empty, valid=not empty
    )
    pairs = np.arange(0 if empty else 2)
    overlap = np.array([] if empty else [0.88, 0.57])
    return Finding(
        record=record,
        instruction="Locate every item from the category list in the image.",
        completion="I see some shapes." if empty else "```json ...```",
        detections=detections,
        match=Match(
            predicted=pairs,
            target=pairs,
            overlap=overlap,
            num_predicted=len(labels),
            num_targets=3,
            detections=detections,
            targets=Targets(boxes_xyxy=truth, labels=record.labels),
        ),
        rewards={"total": 0.0, "dual_format": 0.0, "recall": 0.0, "precision": 0.0}
        if empty
        else {"total": 2.19, "dual_format": 1.0, "recall": 0.67, "precision": 0.52},
    )
