"""Predictions with given boxes on a grey image."""

from dataclasses import replace

import numpy as np
from PIL import Image

from vr1.drawing.boxes import example_prediction
from vr1.types import as_boxes


def with_boxes(boxes, labels, *, matched=(), overlap=(), size=(200, 160), truth=()):
    prediction = example_prediction()
    truth = as_boxes(truth)
    record = replace(
        prediction.record,
        image=Image.new("RGB", size, (128, 128, 128)),
        boxes_xyxy=truth,
        labels=("thing",) * len(truth),
        areas=np.ones(len(truth)),
        crowd=np.zeros(len(truth), bool),
    )
    detections = replace(
        prediction.detections, boxes_xyxy=as_boxes(boxes), labels=tuple(labels), scores=np.full(len(labels), 0.99)
    )
    match = replace(
        prediction.match,
        predicted=np.asarray(matched, np.int64),
        target=np.arange(len(matched)),
        overlap=np.asarray(overlap, np.float64),
        num_predicted=len(labels),
        num_targets=len(truth),
        detections=detections,
    )
    return replace(prediction, record=record, detections=detections, match=match)
