"""One setting for the resolution of every processor, each in its own terms."""

from typing import Any


def set_resolution(image_processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
    """Bound the pixels of the model's input.

    Qwen's processors keep an image between two areas, which are set here; InternVL's cuts it into tiles of one size,
    whose number follows from the areas. How an image is resized between the bounds stays the processor's own rule.

    Args:
        image_processor: of transformers; changed in place.
        min_pixels: smallest input in pixels; None keeps the processor's own.
        max_pixels: largest input in pixels; None keeps the processor's own.

    Raises:
        ValueError: the smallest is above the largest, or the processor has one size for all images.
    """
    size = dict(image_processor.size)
    if hasattr(image_processor, "merge_size"):
        least, most = min_pixels or size["shortest_edge"], max_pixels or size["longest_edge"]
        _refuse_crossed(least, most)
        size.update(shortest_edge=least, longest_edge=most)
        image_processor.size = type(image_processor.size)(**size)
    elif min_pixels is None and max_pixels is None:
        return
    elif hasattr(image_processor, "max_patches"):
        tile = size["height"] * size["width"]
        least, most = (min_pixels or tile) // tile, (max_pixels or tile * image_processor.max_patches) // tile
        _refuse_crossed(min_pixels or tile, max_pixels or tile * image_processor.max_patches)
        image_processor.min_patches, image_processor.max_patches = max(least, 1), max(most, 1)
        image_processor.crop_to_patches = image_processor.max_patches > 1
    else:
        raise ValueError(
            f"policy: min_pixels={min_pixels} and max_pixels={max_pixels}: the {type(image_processor).__name__} of this"
            f" model makes every image {size}; leave both out"
        )


def _refuse_crossed(least: int, most: int) -> None:
    if least > most:
        raise ValueError(f"policy: min_pixels={least} is more than max_pixels={most}; lower it")
