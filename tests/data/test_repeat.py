import pytest

from vr1.data.sampler import RepeatedBatches


@pytest.mark.parametrize(("repeats", "window"), [(1, 1), (2, 1), (3, 2), (2, 4)])
def test_every_full_window_comes_as_often_as_asked(repeats, window):
    batches = RepeatedBatches(23, batch_size=4, repeats=repeats, window=window)
    listed = list(batches)
    full = 23 // (4 * window) * window
    assert len(listed) == len(batches) == full * repeats
    for start in range(0, full * 4, 4):
        assert listed.count(list(range(start, start + 4))) == repeats


def test_a_random_order_is_drawn_once_per_window():
    listed = list(RepeatedBatches(12, batch_size=3, repeats=2, window=2, seed=0))
    assert listed[0:2] == listed[2:4]
    assert listed[4:6] == listed[6:8]
    assert sorted(index for batch in listed for index in batch) == sorted([*range(12)] * 2)


def test_every_epoch_and_seed_has_an_order_of_its_own():
    batches, other = RepeatedBatches(30, 2, seed=3), RepeatedBatches(30, 2, seed=4)
    orders = [list(batches), list(other)]
    for epoch in (1, 2):
        batches.set_epoch(epoch)
        orders.append(list(batches))
    assert all(first != second for at, first in enumerate(orders) for second in orders[:at])
    batches.set_epoch(0)
    assert list(batches) == orders[0]


@pytest.mark.parametrize("repeats", [1, 2])
def test_a_step_sees_the_same_records_however_they_are_divided(repeats):
    def steps(batch_size, window, world):
        ranks = [RepeatedBatches(27, batch_size, repeats, window, seed=5, rank=r, world=world) for r in range(world)]
        batches = [list(rank) for rank in ranks]
        return [
            [index for slot in range(at, at + window) for rank in batches for index in rank[slot]]
            for at in range(0, len(batches[0]), window)
        ]

    whole = steps(8, 1, 1)
    assert len(whole) == 3 * repeats
    for division in ((4, 1, 2), (4, 2, 1), (2, 2, 2), (1, 2, 4), (1, 8, 1)):
        assert steps(*division) == whole, division


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"batch_size": 4}, "3 training records do not fill one batch of batch_size=4; lower batch_size"),
        (
            {"batch_size": 1, "window": 2, "world": 2},
            r"3 training .* one optimizer step of batch_size=1 x accumulate_grad_batches=2 x 2 processes; lower",
        ),
    ],
)
def test_too_few_records_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        RepeatedBatches(3, **settings)
