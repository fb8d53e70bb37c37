from collections import Counter

import numpy as np
import pytest

from tests.shared_data import SHARED, needs_shared
from vr1.data import CocoDataModule, MixtureDataModule, ReferringDataModule, SceneDataModule, Selection
from vr1.data.mixture import mixture_rows


@pytest.mark.parametrize(
    ("lengths", "weights", "records", "expected"),
    [
        ([100, 10], [1, 1], None, [100, 100]),
        ([100, 10], [10, 1], None, [100, 10]),
        ([100, 10], [1, 3], 40, [10, 30]),
        ([7, 7, 7], [1, 1, 1], 10, [4, 3, 3]),
        ([3, 1000], [0.5, 0.5], 1000, [500, 500]),
    ],
)
def test_proportions(lengths, weights, records, expected):
    rows = mixture_rows(lengths, weights, records, seed=1)
    ends = np.cumsum(lengths)
    assert np.bincount(np.searchsorted(ends, rows, side="right"), minlength=len(lengths)).tolist() == expected
    for start, length, count in zip([0, *ends], lengths, expected, strict=False):
        times = np.bincount(rows, minlength=ends[-1])[start : start + length]
        assert times.min() >= count // length
        assert times.max() <= -(-count // length)
    assert rows.tolist() == mixture_rows(lengths, weights, records, seed=1).tolist()
    assert rows.tolist() != mixture_rows(lengths, weights, records, seed=2).tolist()


def test_a_part_of_a_set_is_drawn_at_random():
    drawn = np.array([np.bincount(mixture_rows([100, 5], [2, 1], 30, seed), minlength=105) for seed in range(200)])
    assert (drawn[:, :100].sum(1) == 20).all()
    # Each of the 100 is one of the 20 in a fifth of the draws: 40 times, give or take 5.7.
    times = drawn[:, :100].sum(0)
    assert times.min() >= 40 - 5 * 5.7
    assert times.max() <= 40 + 5 * 5.7


@needs_shared
def test_real_sets_and_expressions_mixed():
    parts = {
        "raccoon": CocoDataModule(SHARED / "raccoon"),
        "thermal": CocoDataModule(SHARED / "thermal", task="grounding", selection=Selection(min_objects=1)),
        "refcoco": ReferringDataModule(
            SHARED / "refcoco_val_slice/images",
            train={"slice": SHARED / "refcoco_val_slice/refcoco_val_slice.jsonl"},
            val={"slice": SHARED / "refcoco_val_slice/refcoco_val_slice.jsonl"},
        ),
    }
    data = MixtureDataModule(parts, weights={"refcoco": 2}, records=80, seed=3)
    source = data.build("train")
    assert Counter(record.set_name for record in source) == {"raccoon": 20, "thermal": 20, "slice": 40}
    val = MixtureDataModule(parts, evaluate=["refcoco", "raccoon"]).build("val")
    assert [record.set_name for record in val] == ["slice"] * 20 + ["raccoon"] * 29
    ordered = MixtureDataModule(parts, records=80, selection=Selection(curriculum=True))
    assert ordered.shuffle is False
    counts = ordered.build("train").object_counts
    assert (np.diff(counts) >= 0).all()
    assert counts[-1] > counts[0]


def test_scenes_can_be_mixed_but_not_selected_from():
    parts = {"a": SceneDataModule(train_scenes=4), "b": SceneDataModule(train_scenes=2, scene_seed=1)}
    source = MixtureDataModule(parts).build("train")
    assert sorted(record.set_name for record in source) == ["a"] * 4 + ["b"] * 4
    with pytest.raises(ValueError, match="does not know how many objects"):
        MixtureDataModule(parts, selection=Selection(max_objects=3)).build("train")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": {"c": 1.0}}, r"data\.weights: c is no part; the parts are a"),
        ({"evaluate": ["c"]}, r"data\.evaluate: c is no part"),
        ({"weights": {"a": 0.0}}, "weights above 0"),
        ({"weights": {"a": float("inf")}}, "weights above 0"),
        ({"records": 0}, r"data\.records=0 must be at least 1"),
        ({"parts": {}}, "at least one part"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        MixtureDataModule(**{"parts": {"a": SceneDataModule()}} | settings)
