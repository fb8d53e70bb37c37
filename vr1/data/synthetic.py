"""Synthetic scenes as a data set: deterministic images with a question about the shapes in them.

A scene is a function of its seed and index alone. The three splits draw from disjoint seed ranges, so no scene of one
is ever a scene of another. Boxes are measured on the drawn pixels, not derived from the drawing commands.
"""

from typing import Any, Literal

import numpy as np

from vr1.data.datamodule import RecordDataModule, Source, Split
from vr1.data.scene_drawing import SHAPES, SceneStyle, draw_scene
from vr1.data.selection import Selection
from vr1.data.source import RecordSource
from vr1.errors import UserError
from vr1.types import DetectionRecord

__all__ = ["SHAPES", "SPLITS", "SceneDataModule", "SceneSource", "SceneStyle"]

SPLITS = ("train", "val", "test")
_CONSONANTS, _VOWELS = "bcdfghklmnprstvw", "aeiou"


class SceneSource(RecordSource):
    """A data set of synthetic scenes.

    Args:
        length: number of scenes.
        split: ``train``, ``val`` or ``test``; splits never share a scene.
        seed: which of the many possible data sets of this style.
        style: how the scenes look.

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
            raise UserError(f"scenes: length={length} is too few; give at least 1")
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


def _question(
    rng: np.random.Generator, style: SceneStyle, shapes: list[str]
) -> tuple[tuple[str, ...], list[int], tuple[str, ...]]:
    """Choose a question: its categories, the rows of the objects that answer it, and their labels."""
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


class SceneDataModule(RecordDataModule):
    """Synthetic scenes.

    Args:
        style: how the scenes look.
        train_scenes: scenes in the training set.
        val_scenes: scenes in the validation set.
        test_scenes: scenes in the test set.
        scene_seed: which of the many data sets of this style.
        settings: batch sizes, workers and order; see `RecordDataModule`.
    """

    def __init__(
        self,
        style: SceneStyle = SceneStyle(),  # noqa: B008 - a frozen dataclass is safe to share
        train_scenes: int = 400,
        val_scenes: int = 256,
        test_scenes: int = 256,
        scene_seed: int = 0,
        **settings: Any,
    ) -> None:
        # How many objects a scene has is known only once it is drawn: there is nothing to select by.
        super().__init__(selection=Selection(), **settings)
        self.style, self.scene_seed = style, scene_seed
        self.lengths = {"train": train_scenes, "val": val_scenes, "test": test_scenes, "predict": test_scenes}

    def read(self, split: Split) -> Source:
        """Scenes of one split; ``predict`` takes the test scenes."""
        return SceneSource(self.lengths[split], "test" if split == "predict" else split, self.scene_seed, self.style)
