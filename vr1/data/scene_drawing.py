"""Draws synthetic scenes: images of several labelled shapes, and the boxes of their pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from vr1.boxes import pairwise_iou
from vr1.errors import UserError
from vr1.types import Boxes, as_boxes

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
_SUPERSAMPLING = 3


@dataclass(frozen=True, kw_only=True)
class SceneStyle:
    """How scenes look.

    Args:
        canvas_sizes: (width, height) in pixels; each scene takes one of them.
        num_objects: least and most objects in a scene, distractors included.
        object_size: least and most edge of an object in pixels.
        max_overlap: greatest IoU between two objects' boxes.
        shapes: the shapes that occur.
        num_categories: least and most shapes that the question names; the others in the scene are distractors.
        absent: share of scenes without an object of the categories in the question.
        named: share of scenes whose question names an invented word that stands for every object, so that a model
            learns to find whatever the question names and to repeat a label that it has never read.
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
                raise UserError(
                    f"scene style: {name}={low, high} is not a range; give the smaller number first, above 0"
                )
        for name in ("absent", "named", "tint", "outline", "max_overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"scene style: {name}={getattr(self, name)} must be between 0 and 1")
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


def draw_scene(rng: np.random.Generator, style: SceneStyle) -> tuple[Image.Image, Boxes, list[str]]:
    """Draw one scene.

    Args:
        rng: draws everything in it.
        style: how it looks.

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


def _place(
    rng: np.random.Generator, style: SceneStyle, shape: str, width: int, height: int, others: Boxes
) -> tuple[Image.Image | None, list[float]]:
    """A free place for one object: its coverage mask and its box, or no mask where the scene is full."""
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
