"""Pictures of a check: histograms, and records as the model sees them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from vr1.boxes import rescale
from vr1.commands.check.summary import OBJECTS, SIDES, Summary, bins
from vr1.detections import read_detections
from vr1.drawing import draw_grid, draw_tile
from vr1.errors import UserError
from vr1.matching import BoxMatcher
from vr1.prompts import PromptEncoder
from vr1.types import DetectionRecord, Prediction, Targets


def histograms(summaries: Sequence[Summary]) -> Figure:
    """Objects a record, box sizes in image and model input, lengths of prompts and true answers, a row a split."""
    width, height = 17.5, 3.0 * len(summaries)
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(len(summaries), 5, squeeze=False)
    for row, summary in zip(axes, summaries, strict=True):
        readable = [item for item in summary.rows if item.tokens]
        parts: list[tuple[str, list[tuple[str, int]]]] = [
            ("objects a record", bins([len(item.labels) for item in readable], OBJECTS)),
            ("box side, px of the image", bins([side for item in readable for side in item.sides], SIDES)),
            ("box side, px of the input", bins([side for item in readable for side in item.input_sides], SIDES)),
        ]
        for axis, (title, named) in zip(row, parts, strict=False):
            axis.bar([name for name, _ in named], [count for _, count in named], color="#4477aa")
            axis.set_title(f"{summary.name}: {title}", fontsize=9)
            axis.tick_params(labelsize=7)
        for axis, what, tokens, limit in (
            (row[3], "prompt", [item.tokens for item in readable], summary.limit),
            (row[4], "answer", [item.answer_tokens for item in readable], summary.answer_limit),
        ):
            axis.hist(tokens, bins=40, range=(0, max([limit or 1, *tokens])), color="#4477aa")
            axis.tick_params(labelsize=7)
            axis.set_title(f"{summary.name}: {what} tokens{' (line: limit)' if limit else ''}", fontsize=9)
            if limit:
                axis.axvline(limit, color="#cc3311")
    # Margins in inches: measuring every text for a constrained layout takes longer than all of the drawing.
    figure.subplots_adjust(
        left=0.5 / width,
        bottom=0.35 / height,
        right=1 - 0.15 / width,
        top=1 - 0.3 / height,
        wspace=0.5 / (width / 5),
        hspace=0.6 / (height / len(summaries)),
    )
    return figure


def draw_records(source: Any, encoder: PromptEncoder, number: int, seed: int) -> Image.Image:
    """Some records at the size to which the model's own processor resizes them.

    The boxes are the true ones as the model would write them: in its family's grammar for this input, and read back.

    Args:
        source: records by index, at least one.
        encoder: the model's, without a limit.
        number: how many records.
        seed: chooses them.
    """
    order = np.random.default_rng(seed).permutation(len(source))[:number]
    tiles = []
    for index in sorted(order.tolist()):
        try:
            tiles.append(draw_tile(as_seen(source[index], encoder), judge=False))
        except UserError:
            continue  # it is among the anomalies already
    return draw_grid(
        tiles or [Image.new("RGB", (64, 64))], f"{len(tiles)} records as the model sees them", legend=False
    )


def as_seen(record: DetectionRecord, encoder: PromptEncoder) -> Prediction:
    """A record at the size of the model's input, answered with its own true boxes.

    Args:
        record: any record.
        encoder: the model's, whose family writes and reads the answer.

    Returns:
        The record resized, and the boxes as they are read back from the written answer.
    """
    prompts = encoder([record])
    size = prompts.input_sizes[0]
    resized = replace(
        record, image=record.image.resize(size), boxes_xyxy=rescale(record.boxes_xyxy, record.image_size, size)
    )
    rows = np.flatnonzero(~record.crowd)
    family = encoder.family
    labels = tuple(record.labels[row] for row in rows)
    text = family.write(family.from_image(record.boxes_xyxy[rows], record.image_size, size), labels)
    detections = read_detections(text, family, record.image_size, size)
    detections = replace(detections, boxes_xyxy=rescale(detections.boxes_xyxy, record.image_size, size))
    targets = Targets(boxes_xyxy=resized.boxes_xyxy[rows], labels=labels)
    return Prediction(
        record=resized,
        instruction=prompts.instructions[0],
        completion=text,
        detections=detections,
        match=BoxMatcher()(detections, targets),
        rewards={},
    )
