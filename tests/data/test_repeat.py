import pytest
from torch.utils.data import DataLoader, RandomSampler

from vr1.data.repeat import RepeatedBatches


@pytest.mark.parametrize(("repeats", "window"), [(1, 1), (2, 1), (3, 2), (2, 4)])
def test_every_full_batch_comes_as_often_as_asked(repeats, window):
    batches = RepeatedBatches(range(23), batch_size=4, repeats=repeats, window=window)
    listed = list(batches)
    assert len(listed) == len(batches) == 5 * repeats
    for start in range(0, 20, 4):
        assert listed.count(list(range(start, start + 4))) == repeats


def test_a_random_order_is_drawn_once_per_window():
    batches = RepeatedBatches(RandomSampler(range(12)), batch_size=3, repeats=2, window=2)
    listed = list(batches)
    assert listed[0:2] == listed[2:4]
    assert listed[4:6] == listed[6:8]
    assert sorted(index for batch in listed for index in batch) == sorted([*range(12)] * 2)


def test_works_as_a_batch_sampler_over_several_epochs():
    loader = DataLoader(range(8), batch_sampler=RepeatedBatches(range(8), batch_size=4, repeats=2), collate_fn=list)
    for _ in range(2):
        assert list(loader) == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7], [4, 5, 6, 7]]


def test_too_few_records_for_a_batch_are_refused():
    with pytest.raises(ValueError, match="3 training records do not fill one batch of batch_size=4"):
        RepeatedBatches(range(3), batch_size=4)
