"""A small COCO document for tests to change."""

DOCUMENT = {
    "images": [
        {"id": 5, "file_name": "a.png", "width": 100, "height": 80},
        {"id": 3, "file_name": "b 2.png", "width": 60, "height": 50},
        {"id": 9, "file_name": "empty.png", "width": 40, "height": 30},
    ],
    "categories": [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 1, "name": "never"}],
    "annotations": [
        {"id": 1, "image_id": 5, "category_id": 2, "bbox": [10, 20, 30, 40], "area": 700, "iscrowd": 0},
        {"id": 2, "image_id": 3, "category_id": 7, "bbox": [0, 0, 60, 50]},
        {"id": 3, "image_id": 5, "category_id": 7, "bbox": [1, 2, 3, 4], "area": None, "iscrowd": 1},
        {"id": 4, "image_id": 5, "category_id": 2, "bbox": [50.5, 0, 49.5, 80], "iscrowd": 0},
    ],
}


def without(item: dict, key: str) -> dict:
    """The item without one of its fields."""
    return {name: value for name, value in item.items() if name != key}


def annotation(**changes) -> dict:
    """A valid annotation of the first image, with changes."""
    return {"id": 50, "image_id": 5, "category_id": 2, "bbox": [10, 20, 30, 40]} | changes
