"""Training images in both orientations."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vr1.data import MixtureDataModule, ReferringDataModule, SceneDataModule, SceneStyle
from vr1.data.mirrored import MirroredSource, mirrored
from vr1.data.selection import SelectedSource
from vr1.data.source import RecordSource
from vr1.data.synthetic import SceneSource
from vr1.data.vision_r1 import VisionR1DataModule


def test_each_image_comes_twice_with_its_boxes_in_place():
    plain = SceneSource(4, style=SceneStyle(num_objects=(1, 3)))
    both = MirroredSource(plain)
    assert len(both) == 8
    ids = set()
    for row in range(4):
        record, same, turned = plain[row], both[2 * row], both[2 * row + 1]
        assert np.array_equal(np.asarray(same.image), np.asarray(record.image))
        assert np.array_equal(same.boxes_xyxy, record.boxes_xyxy)
        assert np.array_equal(np.asarray(turned.image), np.asarray(record.image)[:, ::-1])
        assert (turned.labels, turned.categories) == (record.labels, record.categories)
        assert turned.origin == f"{record.origin} (mirrored)"
        ids |= {same.image_id, turned.image_id}
    assert len(ids) == 8
    with pytest.raises(IndexError, match="record 8 of 8"):
        both[8]
    assert both[-1].origin == both[7].origin


def test_boxes_lie_on_their_objects():
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[2:6, 3:8], pixels[1:3, 15:20] = 255, 128
    record = replace(
        SceneSource(1)[0],
        image=Image.fromarray(pixels),
        boxes_xyxy=np.array([[3.0, 2.0, 8.0, 6.0], [15.0, 1.0, 20.0, 3.0]]),
        labels=("white", "grey"),
    )
    turned = mirrored(record)
    assert turned.boxes_xyxy.tolist() == [[12.0, 2.0, 17.0, 6.0], [0.0, 1.0, 5.0, 3.0]]
    for box, colour in zip(turned.boxes_xyxy.astype(int).tolist(), (255, 128), strict=True):
        inside = np.asarray(turned.image.crop(tuple(box)))
        assert inside.size == (pixels == colour).sum()
        assert (inside == colour).all()


class Sized(RecordSource):
    """Three records that know their sizes and objects in advance."""

    object_counts = np.array([1, 5, 2])
    image_sizes = np.array([[10, 20], [30, 40], [5, 5]])
    reference_sizes = ([(3, 3)], [], [(4, 4)])

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return replace(SceneSource(3)[index], referring=index == 2)


def test_what_is_known_in_advance_is_that_of_both():
    both = MirroredSource(SelectedSource(Sized(), np.array([1, 0])))
    assert both.object_counts.tolist() == [5, 5, 1, 1]
    assert both.image_sizes.tolist() == [[30, 40]] * 2 + [[10, 20]] * 2
    assert both.reference_sizes == [[], [], [(3, 3)], [(3, 3)]]
    assert [both.origin(row) for row in (2, 3)] == ["record 0", "record 0 (mirrored)"]


def test_an_expression_is_not_mirrored():
    with pytest.raises(ValueError, match=r"data.mirror: .* asks for an expression"):
        MirroredSource(Sized())[4]


def test_only_training_images_are_mirrored():
    data = SceneDataModule(train_scenes=5, val_scenes=4, test_scenes=3, mirror=True)
    assert [len(data.build(split)) for split in ("train", "val", "test", "predict")] == [10, 4, 3, 3]
    assert len(SceneDataModule(train_scenes=5).build("train")) == 5


def test_any_data_set_of_records_is_mirrored():
    plain = SceneSource(3)
    both = MirroredSource([plain[row] for row in range(3)])
    assert len(both) == 6
    assert both.object_counts is None
    assert both.reports() == []
    assert [both.origin(row) for row in (4, 5)] == ["record 2", "record 2 (mirrored)"]
    assert both[5].origin == f"{plain[2].origin} (mirrored)"
    empty = mirrored(replace(plain[0], boxes_xyxy=np.zeros((0, 4)), labels=()))
    assert empty.boxes_xyxy.shape == (0, 4)


def test_expressions_are_refused_before_any_is_read(tmp_path):
    with pytest.raises(ValueError, match=r"data.mirror: expressions"):
        ReferringDataModule(images=tmp_path, mirror=True)
    parts = {"scenes": SceneDataModule(), "words": ReferringDataModule(images=tmp_path)}
    with pytest.raises(ValueError, match=r"data.mirror: data.parts.words asks for expressions"):
        MixtureDataModule(parts=parts, mirror=True)


def test_a_stream_is_not_mirrored():
    with pytest.raises(ValueError, match=r"data.mirror: a stream"):
        VisionR1DataModule(streaming=True, mirror=True)
