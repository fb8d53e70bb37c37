"""Width and height in pixels of what a processor made of each image: the frame of models that write input pixels."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas


def input_sizes(
    processor: Any, encoded: Mapping[str, Tensor], image_sizes: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Sizes of the B model inputs, read off what the processor gave.

    Args:
        processor: the model's processor.
        encoded: its output for B images: a ``[B, 3]`` grid of patches (time, rows, columns) or images of one size.
        image_sizes: B (width, height) pairs in pixels of the images as stored.

    Returns:
        B (width, height) pairs in pixels. Where an image was cut into tiles: of the canvas that they cover.
    """
    if "image_grid_thw" in encoded:
        patch = processor.image_processor.patch_size
        return [(int(columns) * patch, int(rows) * patch) for _, rows, columns in encoded["image_grid_thw"].tolist()]
    height, width = encoded["pixel_values"].shape[-2:]
    images = processor.image_processor
    if not getattr(images, "crop_to_patches", False):
        return [(width, height)] * len(image_sizes)
    canvases = [
        get_optimal_tiled_canvas((size[1], size[0]), (height, width), images.min_patches, images.max_patches)
        for size in image_sizes
    ]
    return [(columns * width, rows * height) for columns, rows in canvases]
