import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from tests.data.coco_document import DOCUMENT
from tests.shared_data import SHARED, needs_shared
from vr1.data import CocoDataModule, SceneSource, Selection
from vr1.data.annotated import AnnotatedSource
from vr1.data.questions import Questions
from vr1.data.selection import SelectedSource, select

COUNTS = np.random.default_rng(3).integers(0, 40, 500)


def test_filters_by_number_of_objects():
    rows = Selection(min_objects=1, max_objects=30).rows(COUNTS, seed=0)
    assert rows.tolist() == [row for row, count in enumerate(COUNTS) if 1 <= count <= 30]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_hard_share(share):
    rows = Selection(hard_share=share).rows(COUNTS, seed=0)
    hard = (COUNTS[rows] > 10).sum()
    assert hard / len(rows) == pytest.approx(share, abs=0.02)
    assert len(set(rows.tolist())) == len(rows)
    assert rows.tolist() == sorted(rows.tolist())
    # No larger choice has that share: one of the kinds is used up.
    of_kind = (COUNTS > 10).sum(), (COUNTS <= 10).sum()
    assert of_kind[0] - hard <= 1 / max(share, 0.1) or of_kind[1] - (len(rows) - hard) <= 1 / max(1 - share, 0.1)
    assert Selection(hard_share=share).rows(COUNTS, seed=0).tolist() == rows.tolist()


def test_a_curriculum_orders_by_number_of_objects_and_shuffles_the_equal():
    first, second = (Selection(curriculum=True).rows(COUNTS, seed=seed) for seed in (0, 1))
    for rows in (first, second):
        assert (np.diff(COUNTS[rows]) >= 0).all()
        assert sorted(rows.tolist()) == list(range(500))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_objects": -1}, "min_objects=-1"),
        ({"min_objects": 5, "max_objects": 4}, "max_objects=4"),
        ({"hard_share": 1.5}, "hard_share=1.5: give a share"),
        ({"hard_above": -2}, "hard_above=-2"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Selection(**settings)


def test_an_empty_selection_is_reported():
    with pytest.raises(ValueError, match=r"min_objects=99.*none of 500 records is left; widen"):
        Selection(min_objects=99).rows(COUNTS, seed=0)


def test_a_source_without_counts():
    scenes = SceneSource(4)
    assert select(scenes, Selection(), "train", 0) is scenes
    with pytest.raises(ValueError, match="SceneSource does not know how many objects its records have"):
        select(scenes, Selection(curriculum=True), "train", 0)


@needs_shared
@pytest.mark.parametrize("task", ["detection", "grounding"])
def test_counts_are_those_of_the_records(task):
    folder = SHARED / "bccd"
    source = AnnotatedSource(
        folder / "instances_sample.json", folder / "images", questions=Questions(task=task), bad_records="skip"
    )
    records = list(source)
    assert source.object_counts.tolist() == [int((~record.crowd).sum()) for record in records]
    assert source.pixel_counts.tolist() == [record.image.width * record.image.height for record in records]


def test_negatives_and_crowds_are_counted(tmp_path, picture):
    for image in DOCUMENT["images"]:
        picture(image["file_name"], (image["width"], image["height"]))
    (tmp_path / "train.json").write_text(json.dumps(DOCUMENT))
    for questions in (Questions(), Questions(task="grounding", negatives=0.5)):
        source = AnnotatedSource(tmp_path / "train.json", tmp_path, questions=questions)
        assert source.object_counts.tolist() == [int((~record.crowd).sum()) for record in source]
        assert 0 in source.object_counts


class CountingEncoder:
    """A batch is the numbers of objects of its records."""

    def __call__(self, records):
        return [len(record.labels) for record in records]

    def refusal(self, image_size):
        return None

    def input_size(self, image_size):
        return image_size


def curriculum(rank=0, world=1, batch_size=4):
    """The training loader of a data module whose records are ordered by their number of objects."""
    module = SimpleNamespace(updates_per_rollout=1, samples_whole_steps=False, encoder=CountingEncoder())
    data = CocoDataModule(
        SHARED / "thermal", batch_size=batch_size, num_workers=0, selection=Selection(curriculum=True)
    )
    data.trainer = SimpleNamespace(
        accumulate_grad_batches=1,
        callbacks=[],
        current_epoch=0,
        overfit_batches=0,
        lightning_module=module,
        distributed_sampler_kwargs={"rank": rank, "num_replicas": world},
    )
    data.setup("fit")
    return data, data.train_dataloader()


@needs_shared
def test_the_loader_of_a_curriculum_keeps_its_order():
    data, loader = curriculum()
    counts = [count for batch in loader for count in batch]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    # The next epoch has the same order.
    loader.set_epoch(1)
    assert [count for batch in loader for count in batch] == counts
    # Evaluation takes all records, in order.
    assert len(data.sources["val"]) == 41


@needs_shared
def test_a_curriculum_is_resumed_and_shared_in_its_order():
    loader = curriculum()[1]
    batches = iter(loader)
    first = [next(batches) for _ in range(4)]
    state, rest = loader.state_dict(), list(batches)
    resumed = curriculum()[1]
    resumed.load_state_dict(state)
    assert list(resumed) == rest
    # Two processes see at each step what one alone would see.
    shares = [list(curriculum(rank, 2, batch_size=2)[1]) for rank in (0, 1)]
    assert [a + b for a, b in zip(*shares, strict=True)] == first + rest


def test_a_selected_source_travels_and_refuses_rows_outside(tmp_path):
    source = SelectedSource(SceneSource(4), np.array([3, 1, 1]))
    again = pickle.loads(pickle.dumps(source))
    assert [record.image_id for record in again] == [4, 2, 2]
    with pytest.raises(IndexError, match="record 3 of 3"):
        again[3]
