"""Ground truth of the real sets through each model's own image processor, at three resolutions."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.detection import MeanAveragePrecision
from transformers import GotOcr2ImageProcessor, Qwen2VLImageProcessor, SiglipImageProcessor

from tests.families.test_families import SETS, real_records
from tests.shared_data import needs_shared
from vr1.detections import read_detections
from vr1.families import InternVL, PaliGemma, Qwen2VL, Qwen3VL, Qwen25VL
from vr1.policy.loading import set_resolution
from vr1.prompts import input_sizes

# With the settings of the released models; Qwen3-VL has the same processor with larger patches.
PROCESSORS = {
    "qwen2_5_vl": (Qwen25VL(), Qwen2VLImageProcessor, {}),
    "qwen2_vl": (Qwen2VL(), Qwen2VLImageProcessor, {}),
    "qwen3_vl": (Qwen3VL(), Qwen2VLImageProcessor, {"patch_size": 16}),
    "internvl": (InternVL(), GotOcr2ImageProcessor, {"size": {"height": 448, "width": 448}, "crop_to_patches": True}),
    "paligemma": (PaliGemma(), SiglipImageProcessor, {"size": {"height": 448, "width": 448}}),
}
RESOLUTIONS = [256 * 28 * 28, 512 * 28 * 28, 1280 * 28 * 28]
LEAST_SIDE = 32


@pytest.fixture(scope="module")
def records():
    return [item for name in (*(known for known, _, _ in SETS), "refcoco_val_slice") for item in real_records(name)]


CASES = [(kind, pixels) for kind in PROCESSORS for pixels in (RESOLUTIONS if kind != "paligemma" else [None])]


@needs_shared
@pytest.mark.parametrize(("kind", "max_pixels"), CASES)
def test_boxes_survive_the_processors_resize(kind, max_pixels, records):
    family, make, settings = PROCESSORS[kind]
    images = make(**settings)
    if max_pixels is not None:
        set_resolution(images, None, max_pixels)
    sizes = {size: model_input(images, size) for size in {item.image_size for item in records}}
    assert any(size != seen for size, seen in sizes.items())
    names = {label: number for number, label in enumerate(sorted({label for item in records for label in item.labels}))}
    metric = MeanAveragePrecision(iou_thresholds=np.linspace(0.5, 0.9, 9).tolist(), backend="pycocotools")
    measured = 0
    for item in records:
        seen = sizes[item.image_size]
        boxes = family.from_image(item.boxes_xyxy, item.image_size, seen)
        found = read_detections(family.write(boxes, item.labels), family, item.image_size, seen)
        assert found.valid
        large = (item.boxes_xyxy[:, 2:] - item.boxes_xyxy[:, :2]).min(1, initial=np.inf) > LEAST_SIDE
        measured += int(large.sum())
        labels = torch.tensor([names[label] for label in item.labels], dtype=torch.int64)[large]
        truth = {"boxes": torch.from_numpy(item.boxes_xyxy[large]), "labels": labels}
        scores = torch.ones(int(large.sum()))
        metric.update(
            [{"boxes": torch.from_numpy(found.boxes_xyxy[large]), "labels": labels, "scores": scores}], [truth]
        )
    assert measured > 800
    assert float(metric.compute()["map"]) == pytest.approx(1.0)


def model_input(images, size):
    """Width and height of what the processor makes of an image of this size."""
    encoded = images([Image.new("RGB", size)], return_tensors="pt")
    return input_sizes(SimpleNamespace(image_processor=images), encoded, [size])[0]
