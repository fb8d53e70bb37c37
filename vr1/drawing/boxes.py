"""Boxes of one prediction drawn on its image.

The image is resized first and the boxes are drawn on the result, so that lines and letters stay sharp on an image of a
hundred pixels. All boxes are ``[x1, y1, x2, y2]`` in pixels of the image. Shape letters: N predicted boxes.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from vr1.drawing.fonts import font_for, shorten
from vr1.types import SCORE, Boxes, DetectionRecord, Detections, Match, Prediction, Targets, as_boxes

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]

TRUTH: Colour = (25, 113, 194)
GOOD: Colour = (31, 157, 85)
FAIR: Colour = (232, 137, 12)
POOR: Colour = (214, 40, 57)
GOOD_OVERLAP, FAIR_OVERLAP = 0.75, 0.5
MARKED: Colour = (73, 80, 87)
RIM: Colour = (255, 255, 255)
# Above these counts names would cover the picture: first the missed objects lose their names, then all boxes.
MANY, CROWDED = 14, 30
PALETTE: tuple[Colour, ...] = (
    (214, 40, 57),
    (25, 113, 194),
    (31, 157, 85),
    (174, 62, 201),
    (232, 137, 12),
    (12, 133, 153),
    (230, 73, 128),
    (92, 124, 20),
    (95, 61, 196),
    (134, 84, 57),
)


def draw_prediction(
    prediction: Prediction, long_side: int | None = None, *, judge: bool = True, problems: Sequence[str] = ()
) -> Image.Image:
    """Draw the predicted boxes of a prediction, and the true boxes, on its image.

    Args:
        prediction: one completion with its record, detections and match.
        long_side: longer side of the result in pixels; None leaves the size of the image.
        judge: colour predicted boxes by their overlap with the ground truth and draw the ground truth dashed; False
            colours them by label, for images without annotations. A box's name ends with its score in percent, where
            the model gave one.
        problems: N texts, empty for a box without a problem. A box with a problem is dashed in grey (crossed out where
            it has no area) and its name ends with the text. Only without ``judge``; empty marks no box.

    Returns:
        An RGB picture.

    Example:
        >>> from vr1.drawing.boxes import example_prediction
        >>> draw_prediction(example_prediction(), 300).size
        (300, 225)
    """
    picture = resize(prediction.record.image, long_side)
    scale = picture.width / prediction.record.image.width
    draw = ImageDraw.Draw(picture)
    width = max(1, round(max(picture.size) / 170))
    predicted = _on_picture(prediction.detections.boxes_xyxy, scale, picture.size)
    colours, tags = _by_overlap(prediction) if judge else _by_label(prediction, problems)
    shown = [(box, colour, tag) for box, colour, tag in zip(predicted, colours, tags, strict=True) if box]
    # The worst boxes are drawn last, so that a right box never hides a wrong one.
    shown.sort(key=lambda item: (GOOD, FAIR, POOR).index(item[1]) if judge else item[1] == MARKED)
    count = max(len(shown), prediction.match.num_targets if judge else 0)
    # A white rim keeps a box visible on an object of its own colour, but many rims whiten the whole picture.
    rim = 1 if count <= MANY else 0
    for box, colour, _ in shown:
        if colour == MARKED:
            _draw_marked(draw, box, width, rim)
            continue
        if rim:
            draw.rectangle(_grown(box, rim), outline=RIM, width=width + 2 * rim)
        draw.rectangle(box, outline=colour, width=width)
    missed = _draw_truth(draw, prediction, scale, picture.size, (width, rim)) if judge else []
    if count <= CROWDED:
        _draw_tags(draw, shown + (missed if count <= MANY else []), picture.size)
    return picture


def resize(image: Image.Image, long_side: int | None) -> Image.Image:
    """An RGB copy whose longer side is ``long_side`` pixels, enlarged by a whole factor first to keep edges crisp.

    Example:
        >>> resize(Image.new("L", (20, 10)), 50).size
        (50, 25)
    """
    image = image.convert("RGB").copy()
    if long_side is None:
        return image
    scale = long_side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if scale >= 2:
        factor = int(np.ceil(scale))
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return image.resize(size, Image.Resampling.BOX if scale >= 2 else Image.Resampling.LANCZOS)


def overlap_colour(overlap: float) -> Colour:
    """The colour of a predicted box.

    Args:
        overlap: its overlap with the true box that it is matched with; 0 where it is matched with none.

    Example:
        >>> overlap_colour(0.8) == GOOD, overlap_colour(0.5) == FAIR, overlap_colour(-0.3) == POOR
        (True, True, True)
    """
    if overlap >= GOOD_OVERLAP:
        return GOOD
    return FAIR if overlap >= FAIR_OVERLAP else POOR


def _on_picture(boxes: Boxes, scale: float, size: tuple[int, int]) -> list[Rectangle | None]:
    """Integer corners clipped to the picture; None for a box with a coordinate that is not finite."""
    corners: list[Rectangle | None] = []
    limit = np.array([size[0] - 1, size[1] - 1] * 2)
    for box in boxes:
        if np.isfinite(box).all():
            x1, y1, x2, y2 = (int(value) for value in np.clip(np.round(box * scale), 0, limit))
            corners.append((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))
        else:
            corners.append(None)
    return corners


def _by_overlap(prediction: Prediction) -> tuple[list[Colour], list[str]]:
    overlaps = np.zeros(len(prediction.detections))
    overlaps[prediction.match.predicted] = np.maximum(prediction.match.overlap, 0.0)
    tags = [f"{label} {overlap:.2f}" for label, overlap in zip(prediction.detections.labels, overlaps, strict=True)]
    scores = _shown_scores(prediction.detections)
    return [overlap_colour(overlap) for overlap in overlaps], [
        f"{tag}{score}" for tag, score in zip(tags, scores, strict=True)
    ]


def _shown_scores(detections: Detections) -> list[str]:
    """The end of each box's name: its score, where the model gave one."""
    if (detections.scores == SCORE).all():
        return [""] * len(detections)
    return [f" ({score:.0%})" for score in detections.scores]


def _by_label(prediction: Prediction, problems: Sequence[str]) -> tuple[list[Colour], list[str]]:
    labels = prediction.detections.labels
    # Categories come first, so that a label has the same colour on every picture of a run.
    order = list(dict.fromkeys((*prediction.record.categories, *labels)))
    colours, tags = [], []
    scores = _shown_scores(prediction.detections)
    for label, score, problem in zip(labels, scores, problems or [""] * len(labels), strict=True):
        colours.append(MARKED if problem else PALETTE[order.index(label) % len(PALETTE)])
        tags.append(f"{label}{score}: {problem}" if problem else f"{label}{score}")
    return colours, tags


def _draw_marked(draw: ImageDraw.ImageDraw, box: Rectangle, width: int, rim: int) -> None:
    """Draw a box with a problem: dashed, or as a cross where its width or height is 0."""
    x1, y1, x2, y2 = box
    if x1 < x2 and y1 < y2:
        _dashed(draw, box, width, rim, MARKED)
        return
    arm = 4 * width
    for x, y in {(x1, y1), (x2, y2)}:
        for colour, extra in ((RIM, 2 * rim), (MARKED, 0)):
            draw.line((x - arm, y - arm, x + arm, y + arm), fill=colour, width=width + extra)
            draw.line((x - arm, y + arm, x + arm, y - arm), fill=colour, width=width + extra)


def _draw_truth(
    draw: ImageDraw.ImageDraw, prediction: Prediction, scale: float, size: tuple[int, int], pen: tuple[int, int]
) -> list[tuple[Rectangle, Colour, str]]:
    """Draw the true boxes dashed; return the missed ones, which are the only true boxes with a name."""
    targets = ~prediction.record.crowd
    boxes = _on_picture(prediction.record.boxes_xyxy[targets], scale, size)
    labels = [label for label, is_target in zip(prediction.record.labels, targets, strict=True) if is_target]
    overlaps = dict(zip(prediction.match.target.tolist(), prediction.match.overlap.tolist(), strict=True))
    missed = []
    for index, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        if box:
            _dashed(draw, box, *pen, TRUTH)
            # The assignment pairs as many boxes as it can, so a pair without overlap counts as missed.
            if overlaps.get(index, 0.0) <= 0:
                missed.append((box, TRUTH, f"missed: {label}"))
    return missed


def _dashed(draw: ImageDraw.ImageDraw, box: Rectangle, width: int, rim: int, colour: Colour) -> None:
    """Draw dashes from each corner on; the gaps stay clear, so that a predicted box below them shows."""
    x1, y1, x2, y2 = box
    flat = [(a, y, b, y + width - 1) for y in (y1, y2 - width + 1) for a, b in _dashes(x1, x2, width)]
    upright = [(x, a, x + width - 1, b) for x in (x1, x2 - width + 1) for a, b in _dashes(y1, y2, width)]
    for dash in flat + upright if rim else ():
        draw.rectangle(_grown(dash, rim), fill=RIM)
    for dash in flat + upright:
        draw.rectangle(dash, fill=colour)


def _dashes(start: int, end: int, width: int) -> list[tuple[int, int]]:
    stops = [*range(start, end + 1, 5 * width), end]
    return list(pairwise(stops))[::2]


def _grown(box: Rectangle, by: int) -> Rectangle:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _draw_tags(draw: ImageDraw.ImageDraw, shown: list[tuple[Rectangle, Colour, str]], size: tuple[int, int]) -> None:
    """Write a name next to each box; a name is left out where it would cover another name."""
    height = max(9, min(22, round(max(size) / 30)))
    taken: list[Rectangle] = []
    for box, colour, tag in reversed(shown):
        font = font_for(tag, height)
        text = shorten(tag, font, size[0] * 0.6)
        wide, tall = round(font.getlength(text)) + height // 2, round(height * 1.4)
        place = _free_place(box, wide, tall, taken, size)
        if place:
            taken.append(place)
            draw.rectangle(place, fill=colour)
            draw.text(((place[0] + place[2]) / 2, (place[1] + place[3]) / 2), text, (255, 255, 255), font, "mm")


def _free_place(
    box: Rectangle, wide: int, tall: int, taken: list[Rectangle], size: tuple[int, int]
) -> Rectangle | None:
    x1, y1, x2, y2 = box
    for left in (x1, x2 - wide + 1):
        x = max(0, min(left, size[0] - wide))
        for y in (y1 - tall, y2 + 1, y1, y2 - tall + 1):
            place = (x, y, x + wide - 1, y + tall - 1)
            if 0 <= y <= size[1] - tall and not any(_meet(place, other) for other in taken):
                return place
    return None


def _meet(a: Rectangle, b: Rectangle) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def example_prediction(*, empty: bool = False) -> Prediction:
    """A prediction on a drawn image, for examples and tests.

    The image is 112 x 84 pixels with three objects: the first is predicted well, the second fairly, the third not at
    all, and one predicted box is wrong.

    Args:
        empty: the completion has no boxes at all.

    Example:
        >>> len(example_prediction().detections), len(example_prediction(empty=True).detections)
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
    return Prediction(
        record=record,
        instruction="Locate every item from the category list in the image.",
        completion="I see some shapes." if empty else "```json ...```",
        detections=detections,
        match=Match(
            predicted=pairs,
            target=pairs,
            overlap=overlap,
            box_overlap=overlap,
            num_predicted=len(labels),
            num_targets=3,
            detections=detections,
            targets=Targets(boxes_xyxy=truth, labels=record.labels),
        ),
        rewards={"total": 0.0, "dual_format": 0.0, "recall": 0.0, "precision": 0.0}
        if empty
        else {"total": 2.19, "dual_format": 1.0, "recall": 0.67, "precision": 0.52},
    )
