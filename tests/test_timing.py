"""Times on the host, and on a GPU that is played: events that it reaches when the test says so."""

import gc
import time

import pytest
import torch

from vr1.timing import Interval, StepTimer


class Gpu:
    """A stream whose events happen at given times, up to ``reached``; notes every wait of the host."""

    def __init__(self):
        self.times, self.reached, self.waits = [], 0, 0


class Event:
    gpu: Gpu

    def __init__(self, enable_timing):
        assert enable_timing
        self.number = None

    def record(self):
        self.number = len(self.gpu.times)
        self.gpu.times.append(None)

    def query(self):
        return self.number < self.gpu.reached

    def synchronize(self):
        if not self.query():
            self.gpu.waits += 1
            self.gpu.reached = self.number + 1

    def elapsed_time(self, end):
        assert end.query(), "not known yet"
        # In milliseconds; event n happens at second n * n.
        return 1000.0 * (end.number**2 - self.number**2)


@pytest.fixture
def gpu(monkeypatch):
    played = Gpu()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Event, "gpu", played, raising=False)
    return played


def test_the_host_measures_wall_time():
    timer = StepTimer()
    started = time.perf_counter()
    with timer.measure("rollout") as interval:
        time.sleep(0.05)
    with timer.measure("rollout"):
        time.sleep(0.05)
    passed = time.perf_counter() - started
    assert interval.has_ended
    assert 0.05 <= interval.seconds < passed
    assert 0.1 <= timer.seconds["rollout"] <= passed
    assert timer.seconds == timer.seconds


def test_a_gpu_is_waited_for_when_a_time_is_read(gpu):
    timer = StepTimer()
    with timer.measure("rollout") as first:
        pass
    with timer.measure("reference"):
        pass
    with timer.measure("rollout"):
        pass
    assert gpu.waits == 0
    assert not first.has_ended
    assert first.seconds == 1.0
    assert gpu.waits == 1
    seconds = timer.seconds
    assert seconds == {"rollout": 1.0 + 25 - 16, "reference": 9.0 - 4}
    waits = gpu.waits
    assert timer.seconds == seconds
    assert gpu.waits == waits, "what has been read is not waited for again"


def test_times_that_nobody_reads_do_not_pile_up(gpu):
    """The intervals that the GPU has passed are added up; there are no more events than it is behind."""
    gc.collect()
    # Those of other tests.
    before = sum(type(one) is Interval for one in gc.get_objects())
    timer = StepTimer()
    for step in range(50):
        with timer.measure("rollout"):
            pass
        gpu.reached = 2 * step
    gc.collect()
    alive = sum(type(one) is Interval for one in gc.get_objects()) - before
    assert alive < 5
    assert gpu.waits == 0
    gpu.reached = 100
    assert timer.seconds["rollout"] == sum((2 * n + 1) ** 2 - (2 * n) ** 2 for n in range(50))


def test_after_an_error_the_part_is_that_of_the_error():
    timer = StepTimer()
    with pytest.raises(KeyError), timer.measure("reward"):
        raise KeyError
    assert timer.part == "reward"
    assert timer.seconds == {}


def test_tokens_are_counted_where_they_are():
    timer = StepTimer()
    timer.add_tokens(torch.tensor(3))
    timer.add_tokens(torch.tensor(4))
    timer.add_tokens(5)
    assert timer.tokens == 12
    timer.tokens += 1
    assert timer.tokens == 13
