"""Figures of an optimizer step: what they are, and that logging them does not wait for a GPU."""

from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainers import trainer
from vr1.advantage import Advantages, RewardedGroups
from vr1.data import SceneDataModule, SceneStyle
from vr1.losses import GRPO
from vr1.modules.figures import StepFigures, StepTimes, on_device, rollout_figures, times_are_read
from vr1.modules.grpo import GRPOModule
from vr1.modules.sft import SFTModule
from vr1.policy import Policy
from vr1.rewards import Criterion
from vr1.rollout import Sampling
from vr1.types import Rollout

pytestmark = pytest.mark.filterwarnings("ignore:The .*_dataloader' does not have many workers")
READS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero"}


class Reads(TorchDispatchMode):
    """Counts by place the operators whose result the host reads, each of which waits for a GPU."""

    def __init__(self):
        super().__init__()
        self.counts, self.places = {}, ["elsewhere"]

    @contextmanager
    def at(self, place):
        self.places.append(place)
        yield
        self.places.pop()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in READS:
            self.counts[self.places[-1]] = self.counts.get(self.places[-1], 0) + 1
        return func(*args, **(kwargs or {}))


READING = Reads()


class GRPOWatched(GRPOModule):
    def on_train_batch_start(self, batch, batch_idx):
        with READING.at("step"):
            super().on_train_batch_start(batch, batch_idx)

    def training_step(self, batch, batch_idx):
        with READING.at("step"):
            return super().training_step(batch, batch_idx)

    def collect(self, batch):
        with READING.at("collect"):
            return super().collect(batch)

    def sample(self, *arguments):
        with READING.at("sampling"):
            return super().sample(*arguments)


class SFTWatched(SFTModule):
    def training_step(self, batch, batch_idx):
        with READING.at("step"):
            return super().training_step(batch, batch_idx)


def grpo(source, **settings):
    return GRPOWatched(policy=source, sampling=Sampling(group_size=2, max_new_tokens=5), seed=1, **settings)


@pytest.mark.parametrize(
    "make",
    [
        grpo,
        partial(grpo, loss=GRPO(kl_coef=0.0, correction="token")),
        partial(grpo, updates_per_rollout=2),
        lambda source: SFTWatched(policy=source),
    ],
    ids=["reference", "correction", "updates", "sft"],
)
def test_loss_and_figures_of_a_step_read_no_number(source, tmp_path, monkeypatch, make):
    original = Policy.log_probs

    def log_probs(policy, *arguments, **settings):
        with READING.at("forward"):
            return original(policy, *arguments, **settings)

    monkeypatch.setattr(Policy, "log_probs", log_probs)
    READING.counts.clear()
    data = SceneDataModule(SceneStyle(), train_scenes=8, val_scenes=1, batch_size=2, num_workers=0)
    run = trainer(tmp_path, max_steps=4, max_epochs=-1, accumulate_grad_batches=2)
    with READING:
        run.fit(make(source), data)
    assert READING.counts.get("step", 0) == 0
    # The shapes of a forward depend on the lengths of the completions.
    assert READING.counts["forward"] > 0
    assert all(isinstance(value, torch.Tensor) for value in run.callback_metrics.values())


def test_figures_come_to_the_device_together():
    values = {"a": 1.5, "b": torch.tensor(2), "c": 3}
    there = on_device(values, torch.device("meta"))
    assert list(there) == ["a", "b", "c"]
    assert {value.device.type for value in there.values()} == {"meta"}
    here = on_device(values, torch.device("cpu"))
    assert {name: float(value) for name, value in here.items()} == {"a": 1.5, "b": 2.0, "c": 3.0}
    assert {value.dtype for value in here.values()} == {torch.float32}


def test_figures_of_completions():
    """Two groups of two: one without a difference, one of rewards 0 and 2; one completion of four is cut off."""
    mask = torch.tensor([[[1, 1, 0], [1, 0, 0]], [[1, 1, 1], [1, 1, 0]]]).bool()
    rollout = Rollout(
        tokens=torch.zeros(2, 2, 3, dtype=torch.long),
        mask=mask,
        finished=torch.tensor([[True, True], [False, True]]),
        log_probs=torch.zeros(2, 2, 3),
        texts=[["", ""], ["", ""]],
    )
    problems = [(), ("one: a",), (), ("one: b", "two: c")]
    rewards = RewardedGroups(
        total=torch.tensor([[1.0, 1.0], [0.0, 2.0]]),
        terms={},
        weights={},
        matches=[SimpleNamespace(detections=SimpleNamespace(problems=found)) for found in problems],
        criterion=Criterion(0.5, 0.5, 0.75),
    )
    expected = {
        "zero_variance_groups": 0.5,
        "reward_std": 2**0.5 / 2,
        "completion_tokens": 2.0,
        "truncated": 0.25,
        "problems": 0.75,
    }
    found = {name: float(value) for name, value in rollout_figures(rollout, rewards).items()}
    assert found == pytest.approx(expected)
    figures = StepFigures()
    figures.add_rollout(rollout, rewards, Advantages(answers=torch.zeros(2, 2)))
    # Of one box, with an advantage of its own, in the first batch, and of three without any in the second.
    for boxes in ([1.0], [0.0] * 3):
        empty = [np.zeros(0)] * 3
        figures.add_rollout(rollout, rewards, of_boxes(np.array(boxes), *empty))
    taken = {name: float(value) for name, value in figures.take(CPU, alone).items()}
    assert taken == pytest.approx(
        {f"grpo/{name}": value for name, value in expected.items()}
        | {"reward/total": 1.0, "grpo/boxes_with_advantage": 0.25}
    )


def of_boxes(*boxes):
    zeros = torch.zeros(2, 2)
    return Advantages(answers=zeros, items=boxes, boxes=boxes, ends=zeros)


CPU = torch.device("cpu")


def alone(tensor, reduce_op):
    return tensor


def another(values):
    """The reduction with another process, of whose values a part is given by operation, in the order of the calls."""
    calls = iter(values)

    def reduce(tensor, reduce_op):
        theirs = torch.tensor(next(calls))
        return (tensor + theirs) / 2 if reduce_op == "mean" else torch.maximum(tensor, theirs)

    return reduce


def test_figures_of_a_step_are_those_of_all_its_batches_and_processes():
    """Tokens: 30 of 0.5 and 10 of 0.1 here, 60 of 0.3 there; the largest of 2, 1 and 4."""
    figures = StepFigures()
    for kl, tokens, largest in ((0.5, 30, 2.0), (0.1, torch.tensor(10), 1.0)):
        figures.add("grpo", {"kl": torch.tensor(kl)}, tokens)
        figures.add_maxima("grpo", {"largest": largest})
    taken = figures.take(CPU, another([[18.0], [60.0], [4.0]]))
    assert {name: float(value) for name, value in taken.items()} == pytest.approx(
        {"grpo/kl": (15 + 1 + 18) / 100, "grpo/largest": 4.0}
    )
    assert figures.take(CPU, alone) == {}, "another step has begun"
    figures.add("grpo", {"kl": 0.0}, 0)
    assert figures.take(CPU, alone) == {"grpo/kl": 0.0}


def test_figures_of_a_step_continue_from_their_state():
    whole, first, second = StepFigures(), StepFigures(), StepFigures()
    for number, parts in enumerate([(whole, first)] * 3 + [(whole, second)] * 2):
        if number == 3:
            second.load_state_dict(first.state_dict(CPU, alone))
        for figures in parts:
            figures.add("grpo", {"kl": number / 7}, 3 + number)
            figures.add_maxima("grpo", {"largest": -((number - 1) ** 2)})
    assert second.take(CPU, alone) == whole.take(CPU, alone)


def test_times_of_a_step_are_those_of_all_its_batches():
    times = StepTimes()
    for seconds in (1.0, 3.0):
        times.add_rollout(
            Rollout(
                tokens=torch.zeros(1, 1, 4, dtype=torch.long),
                mask=torch.ones(1, 1, 4, dtype=torch.bool),
                finished=torch.ones(1, 1, dtype=torch.bool),
                log_probs=torch.zeros(1, 1, 4),
                texts=[[""]],
                seconds={"prefill": seconds, "decode": 1.0},
            )
        )
    times.add("reference", 0.5)
    expected = {"prefill_seconds": 4.0, "decode_seconds": 2.0, "reference_seconds": 0.5, "tokens_per_second": 8 / 6}
    assert times.figures() == pytest.approx(expected)
    times.clear()
    assert times.figures() == {}


@pytest.mark.parametrize(
    ("device", "every", "step", "batch", "read"),
    [
        ("cpu", 10, 3, 0, True),
        ("cuda", 10, 9, 1, True),
        ("cuda", 10, 9, 0, False),
        ("cuda", 10, 8, 1, False),
        ("cuda", 1, 8, 1, True),
        ("cuda", 0, 9, 1, False),
    ],
)
def test_on_a_gpu_only_times_that_are_logged_are_read(device, every, step, batch, read):
    run = SimpleNamespace(
        log_every_n_steps=every, global_step=step, accumulate_grad_batches=2, num_training_batches=100
    )
    assert times_are_read(run, batch, torch.device(device)) is read
