"""Synthetic scenes: a deterministic generator of images with several labelled shapes.

A scene is a function of its seed and index alone. The three splits draw from disjoint seed ranges, so no scene of one
is ever a scene of another. Boxes are measured on the drawn pixels, not derived from the drawing commands.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from torch.utils.data import Dataset

from vr1.boxes import pairwise_iou
from vr1.data.datamodule import RecordDataModule, Source, Split
from vr1.errors import UserError
from vr1.types import Boxes, DetectionRecord, as_boxes

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SPLITS = ("train", "val", "test")
_SUPERSAMPLING = 3
_CONSONANTS, _VOWELS = "bcdfghklmnprstvw", "aeiou"


@dataclass(frozen=True, kw_only=True)
class SceneStyle:
    """What scenes look like.

    Args:
        canvas_sizes: (width, height) in pixels; each scene takes one of them.
        num_objects: least and most objects in a scene, distractors included.
        object_size: least and most edge of an object in pixels.
        max_overlap: greatest IoU between two objects' boxes.
        shapes: the shapes that occur.
        num_categories: least and most shapes that the question names; the others in the scene are distractors.
        absent: share of scenes in which no object of the asked categories is present.
        named: share of scenes whose question names a made-up word that stands for every object, so that a model learns
            to look for whatever it is asked for and to repeat a label that it has never read.
        background: ``plain`` colour, ``gradient`` of two colours, or ``clutter`` (gradient, strokes and dots).
        tint: strength 0..1 with which the whole scene is mixed with one colour of its own.
        noise: standard deviation of pixel noise, in units of 0..255.
        blur: radius of a Gaussian blur in pixels.
        outline: share of objects drawn as outlines instead of filled.

    Raises:
        UserError: a range is empty, a share is outside 0..1, or no object fits on a canvas.
    """

    canvas_sizes: Sequence[tuple[int, int]] = ((112, 112), (140, 84), (84, 140))
    num_objects: tuple[int, int] = (1, 5)
    object_size: tuple[float, float] = (14.0, 44.0)
    max_overlap: float = 0.15
    shapes: Sequence[str] = SHAPES
    num_categories: tuple[int, int] = (1, 4)
    absent: float = 0.05
    named: float = 0.0
    background: Literal["plain", "gradient", "clutter"] = "clutter"
    tint: float = 0.0
    noise: float = 4.0
    blur: float = 0.0
    outline: float = 0.0

    def __post_init__(self) -> None:
        for name in ("num_objects", "object_size", "num_categories"):
            low, high = getattr(self, name)
            if not 0 <= low <= high or (name != "num_objects" and low <= 0):
                raise UserError(f"scene style: {name}={low, high} is no range; give the smaller number first, above 0")
        for name in ("absent", "named", "tint", "outline", "max_overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"scene style: {name}={getattr(self, name)} must lie between 0 and 1")
        for name in ("noise", "blur"):
            if not getattr(self, name) >= 0:
                raise UserError(f"scene style: {name}={getattr(self, name)} must not be negative")
        if self.background not in ("plain", "gradient", "clutter"):
            raise UserError(f"scene style: background={self.background!r} must be plain, gradient or clutter")
        unknown = sorted(set(self.shapes) - set(SHAPES))
        if unknown or not self.shapes:
            raise UserError(f"scene style: unknown shapes {unknown}; choose among {', '.join(SHAPES)}")
        self._check_canvases()

    def _check_canvases(self) -> None:
        if not self.canvas_sizes or min(min(size) for size in self.canvas_sizes) < 8:
            raise UserError(
                f"scene style: canvas_sizes={self.canvas_sizes} needs at least one size of 8 pixels or more"
            )
        if self.object_size[0] > max(min(size) for size in self.canvas_sizes) - 2:
            raise UserError(
                f"scene style: object_size={self.object_size} fits on none of canvas_sizes={self.canvas_sizes}; make"
                " objects smaller"
            )


class SceneSource(Dataset[DetectionRecord]):
    """A data set of made scenes.

    Args:
        length: number of scenes.
        split: ``train``, ``val`` or ``test``; splits never share a scene.
        seed: which of the many possible data sets of this style.
        style: what the scenes look like.

    Raises:
        UserError: ``length`` is not positive or the split is unknown.

    Example:
        >>> source = SceneSource(length=4, split="val")
        >>> record = source[0]
        >>> record.image_size in SceneStyle().canvas_sizes, len(record.labels) == len(record.boxes_xyxy)
        (True, True)
        >>> (source[0].boxes_xyxy == record.boxes_xyxy).all().item()
        True
    """

    def __init__(
        self,
        length: int,
        split: Literal["train", "val", "test"] = "train",
        seed: int = 0,
        style: SceneStyle | None = None,
    ) -> None:
        if length < 1:
            raise UserError(f"scenes: length={length} leaves nothing to read; give at least 1")
        if split not in SPLITS:
            raise UserError(f"scenes: split={split!r} is unknown; choose among {', '.join(SPLITS)}")
        self.length, self.split, self.seed, self.style = length, split, seed, style or SceneStyle()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> DetectionRecord:
        """Draw scene ``index``.

        Raises:
            IndexError: outside the data set.
        """
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        # A seed sequence keeps every (split, seed, index) in a stream of its own.
        rng = np.random.default_rng([SPLITS.index(self.split), self.seed, index])
        image, boxes, shapes = draw_scene(rng, self.style)
        categories, keep, labels = _question(rng, self.style, shapes)
        boxes = boxes[keep]
        return DetectionRecord(
            image=image,
            boxes_xyxy=boxes,
            labels=labels,
            categories=categories,
            image_id=index + 1,
            origin=f"scene {self.split}/{self.seed}/{index}",
            areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
            crowd=np.zeros(len(boxes), dtype=bool),
        )


def draw_scene(rng: np.random.Generator, style: SceneStyle) -> tuple[Image.Image, Boxes, list[str]]:
    """Draw one scene.

    Returns:
        The RGB image, the ``[M, 4]`` boxes in its pixels in drawing order, and the M shapes.
    """
    width, height = style.canvas_sizes[int(rng.integers(len(style.canvas_sizes)))]
    image = _background(rng, style, width, height)
    boxes: list[list[float]] = []
    shapes: list[str] = []
    for _ in range(int(rng.integers(style.num_objects[0], style.num_objects[1] + 1))):
        shape = str(rng.choice(list(style.shapes)))
        mask, box = _place(rng, style, shape, width, height, as_boxes(boxes))
        if mask is not None:
            image.paste(_colour(rng, vivid=True), (0, 0), mask)
            boxes.append(box)
            shapes.append(shape)
    return _finish(rng, style, image), as_boxes(boxes), shapes


def _question(
    rng: np.random.Generator, style: SceneStyle, shapes: list[str]
) -> tuple[tuple[str, ...], list[int], tuple[str, ...]]:
    """Choose what is asked for: the categories, the rows of the objects that answer, and their labels."""
    draw = rng.random()
    if draw < style.named:
        name = "".join(_CONSONANTS[rng.integers(16)] + _VOWELS[rng.integers(5)] for _ in range(rng.integers(2, 5)))
        return (name,), list(range(len(shapes))), (name,) * len(shapes)
    present = sorted(set(shapes))
    missing = [shape for shape in style.shapes if shape not in present]
    low, high = style.num_categories
    count = int(rng.integers(low, min(high, len(style.shapes)) + 1))
    if (draw < style.named + style.absent and missing) or not present:
        chosen = list(rng.permutation(missing)[:count])
    else:
        first = rng.choice(present)
        others = rng.permutation([shape for shape in style.shapes if shape != first])
        chosen = list(rng.permutation([first, *others[: count - 1]]))
    keep = [row for row, shape in enumerate(shapes) if shape in chosen]
    return tuple(map(str, chosen)), keep, tuple(shapes[row] for row in keep)


def _place(
    rng: np.random.Generator, style: SceneStyle, shape: str, width: int, height: int, others: Boxes
) -> tuple[Image.Image | None, list[float]]:
    """Find room for one object: its coverage mask and its box, or no mask where the scene is full."""
    for _ in range(20):
        size = rng.uniform(*style.object_size)
        aspect = rng.uniform(0.75, 1.33)
        w, h = size * math.sqrt(aspect), size / math.sqrt(aspect)
        if w > width - 2 or h > height - 2:
            continue
        x, y = rng.uniform(1, width - 1 - w), rng.uniform(1, height - 1 - h)
        box = as_boxes([x, y, x + w, y + h])
        if len(others) and pairwise_iou(box, others).max() > style.max_overlap:
            continue
        scale = _SUPERSAMPLING
        mask = Image.new("L", (width * scale, height * scale))
        _draw_shape(ImageDraw.Draw(mask), shape, box[0] * scale, outline=rng.random() < style.outline)
        extent = mask.getbbox()
        if extent is None:
            continue
        return mask.resize((width, height), Image.Resampling.BOX), [edge / scale for edge in extent]
    return None, []


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, box: Boxes, outline: bool) -> None:
    """Draw one shape so that it touches all four edges of its box ``[4]``, in the pixels of ``draw``."""
    x1, y1, x2, y2 = box.tolist()
    w, h = x2 - x1, y2 - y1
    line = max(2, round(min(w, h) * 0.16))
    fill, edge = (0, 255) if outline else (255, 255)
    if shape == "circle":
        draw.ellipse((x1, y1, x2, y2), fill=fill, outline=edge, width=line)
    elif shape == "ring":
        draw.ellipse((x1, y1, x2, y2), outline=255, width=max(2, round(min(w, h) * 0.24)))
    elif shape == "square":
        draw.rectangle((x1, y1, x2, y2), fill=fill, outline=edge, width=line)
    elif shape == "cross":
        draw.rectangle((x1 + 0.34 * w, y1, x1 + 0.66 * w, y2), fill=255)
        draw.rectangle((x1, y1 + 0.34 * h, x2, y1 + 0.66 * h), fill=255)
    else:
        points = _corners(shape)
        draw.polygon([(x1 + px * w, y1 + py * h) for px, py in points], fill=fill, outline=edge, width=line)


def _corners(shape: str) -> list[tuple[float, float]]:
    """Corner points of a triangle or a star, stretched to the unit square."""
    if shape == "triangle":
        return [(0.5, 0.0), (1.0, 1.0), (0.0, 1.0)]
    angles = [math.pi * step / 5 - math.pi / 2 for step in range(10)]
    radii = [1.0 if step % 2 == 0 else 0.42 for step in range(10)]
    points = [(radius * math.cos(angle), radius * math.sin(angle)) for angle, radius in zip(angles, radii, strict=True)]
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    top, bottom = min(y for _, y in points), max(y for _, y in points)
    return [((x - left) / (right - left), (y - top) / (bottom - top)) for x, y in points]


def _colour(rng: np.random.Generator, vivid: bool) -> tuple[int, int, int]:
    """A random colour: saturated for objects, muted for backgrounds."""
    hue, saturation, value = rng.random(), rng.uniform(0.55, 1.0), rng.uniform(0.65, 1.0)
    if not vivid:
        saturation, value = rng.uniform(0.0, 0.35), rng.uniform(0.1, 0.9)
    colour = Image.new("HSV", (1, 1), (int(hue * 255), int(saturation * 255), int(value * 255)))
    return colour.convert("RGB").getpixel((0, 0))  # type: ignore[return-value]


def _background(rng: np.random.Generator, style: SceneStyle, width: int, height: int) -> Image.Image:
    """The canvas before any object is drawn on it."""
    first = Image.new("RGB", (width, height), _colour(rng, vivid=False))
    if style.background == "plain":
        return first
    second = Image.new("RGB", (width, height), _colour(rng, vivid=False))
    ramp = Image.linear_gradient("L").rotate(float(rng.integers(4)) * 90).resize((width, height))
    image = Image.composite(first, second, ramp)
    if style.background == "gradient":
        return image
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 8))):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        reach, angle = rng.uniform(4, 40), rng.uniform(0, 2 * math.pi)
        end = (x + reach * math.cos(angle), y + reach * math.sin(angle))
        draw.line((x, y, *end), fill=_colour(rng, vivid=False), width=int(rng.integers(1, 3)))
    for _ in range(int(rng.integers(0, 10))):
        x, y, radius = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.5, 2.5)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_colour(rng, vivid=False))
    return image


def _finish(rng: np.random.Generator, style: SceneStyle, image: Image.Image) -> Image.Image:
    """Tint, blur and noise, over objects and background alike."""
    if style.tint:
        image = Image.blend(image, Image.new("RGB", image.size, _colour(rng, vivid=True)), style.tint)
    if style.blur:
        image = image.filter(ImageFilter.GaussianBlur(style.blur))
    if style.noise:
        pixels = np.asarray(image, dtype=np.float32)
        pixels = pixels + rng.normal(0.0, style.noise, pixels.shape).astype(np.float32)
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image


class SceneDataModule(RecordDataModule):
    """Made scenes.

    Args:
        style: what the scenes look like.
        train_scenes: scenes in the training set.
        val_scenes: scenes in the validation set.
        test_scenes: scenes in the test set.
        scene_seed: which of the many data sets of this style.
        loading: batch sizes, workers and order; see `RecordDataModule`.
    """

    def __init__(
        self,
        style: SceneStyle = SceneStyle(),
        train_scenes: int = 400,
        val_scenes: int = 256,
        test_scenes: int = 256,
        scene_seed: int = 0,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        self.style, self.scene_seed = style, scene_seed
        self.lengths = {"train": train_scenes, "val": val_scenes, "test": test_scenes, "predict": test_scenes}

    def build(self, split: Split) -> Source:
        """Scenes of one split; what is predicted on are the test scenes."""
        return SceneSource(self.lengths[split], "test" if split == "predict" else split, self.scene_seed, self.style)
