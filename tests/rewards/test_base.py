"""Reward terms as metrics, and the thresholds of the criterion."""

import json

import matplotlib as mpl
import numpy as np
import pytest
import torch

from tests.processes import start_two
from tests.strategies.runs import free_port
from vr1.errors import UserError
from vr1.rewards import STAGES, Criterion, Precision, RewardTerm


class Constant(RewardTerm):
    def __init__(self, value=0.5):
        super().__init__()
        self.value = value

    def score(self, match, criterion):
        return self.value


def test_scores_change_no_state_and_a_call_gives_their_mean(matched):
    term = Precision()
    scores = term.scores([matched([0.9]), matched([0.1])], Criterion())
    assert scores.tolist() == [1, 0]
    assert scores.dtype == torch.float32
    assert not term.update_called
    assert term(scores) == 0.5
    assert term(torch.ones(1, 1)) == 1
    assert term.compute() == pytest.approx(2 / 3)
    term.reset()
    assert term.count == 0


def test_no_completions():
    term = Constant()
    scores = term.scores([], Criterion())
    assert scores.shape == (0,)
    assert term(scores) == term.compute() == 0


# Completions of each of two processes, in two steps.
SCORES = [[[1.0, 0.0, 0.5], [0.25]], [[1.0], [0.0, 0.75, 1.0, 1.0]]]


def score_on_process(rank, port, folder):
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    term = Constant()
    steps = [float(term(torch.tensor(step))) for step in SCORES[rank]]
    (folder / f"{rank}.json").write_text(json.dumps([*steps, float(term.compute())]))
    torch.distributed.destroy_process_group()


def test_two_processes_log_the_mean_of_all_completions(tmp_path):
    start_two(score_on_process, free_port(), tmp_path)
    steps = [SCORES[0][step] + SCORES[1][step] for step in range(2)]
    expected = [float(np.mean(scores)) for scores in (*steps, steps[0] + steps[1])]
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(expected)


def test_a_reset_in_inference_mode_does_not_break_training():
    term = Constant()
    with torch.inference_mode():
        term(torch.ones(2))
        term.reset()
    term(torch.tensor([0.5]))
    assert term.compute() == 0.5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_is_an_error(matched, value):
    with pytest.raises(UserError, match=r"Constant\.score returned"):
        Constant(value).scores([matched([0.9])], Criterion())


def test_plot():
    mpl.use("Agg")
    term = Precision()
    term(torch.tensor([1.0]))
    figure, _ = term.plot()
    assert figure is not None
    figure, _ = term.plot([torch.tensor(0.1), torch.tensor(0.2)])
    assert figure is not None


@pytest.mark.parametrize(
    ("stage", "values"),
    [
        ("beginner", {-0.2: 0, 0.499: 0, 0.5: 0.5, 0.74: 0.74, 0.75: 1, 1.0: 1}),
        ("advanced", {0.5: 0, 0.749: 0, 0.75: 0.75, 0.89: 0.89, 0.9: 1, 1.0: 1}),
        ("off", {-0.2: 0, 0.0: 0, 0.3: 0.3, 0.99: 0.99, 1.0: 1}),
    ],
)
def test_differentiation(stage, values):
    assert {value: STAGES[stage].f(value) for value in values} == values


def test_recall_threshold():
    assert [Criterion(xi0=0.5).hit(overlap) for overlap in (0.49, 0.5, 0.51)] == [0, 1, 1]


def test_strict_excludes_the_threshold_itself():
    strict = Criterion(xi0=0.5, xi1=0.5, xi2=0.75, strict=True)
    assert [strict.f(value) for value in (0.49, 0.5, 0.75, 0.76)] == [0, 0.5, 0.75, 1]
    assert [strict.hit(value) for value in (0.49, 0.5, 0.51)] == [0, 0.5, 1]


def test_a_stage_has_the_comparison_of_its_criterion():
    assert Criterion(strict=True).at_stage("advanced") == Criterion(xi0=0.75, xi1=0.75, xi2=0.9, strict=True)


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ({"xi1": 0.8, "xi2": 0.7}, r"xi1=0\.8, xi2=0\.7"),
        ({"xi1": -0.1}, "xi1"),
        ({"xi2": 1.1}, "xi2"),
        ({"xi0": 2.0}, "xi0"),
        ({"xi2": float("nan")}, "xi2"),
    ],
)
def test_criterion_wrong_thresholds_are_errors(thresholds, message):
    with pytest.raises(ValueError, match=message):
        Criterion(**thresholds)
