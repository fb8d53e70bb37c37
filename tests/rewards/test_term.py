import matplotlib as mpl
import pytest
import torch

from vr1.rewards import Criterion, Precision, RewardTerm


class Constant(RewardTerm):
    def __init__(self, value=0.5):
        super().__init__()
        self.value = value

    def score(self, match, criterion):
        return self.value


def test_calling_gives_scores_and_keeps_their_mean(matched):
    term = Precision()
    scores = term([matched([0.9]), matched([0.1])], Criterion())
    assert scores.tolist() == [1, 0]
    assert scores.dtype == torch.float32
    term([matched([0.9])], Criterion())
    assert term.compute() == pytest.approx(2 / 3)
    term.reset()
    assert term.count == 0


def test_no_completions():
    term = Constant()
    assert term([], Criterion()).shape == (0,)
    assert term.compute() == 0


def test_states_are_summed_over_processes():
    assert {name: reduce.__name__ for name, reduce in Constant()._reductions.items()} == {
        "total": "dim_zero_sum",
        "count": "dim_zero_sum",
    }


def test_a_reset_in_inference_mode_does_not_break_training(matched):
    term = Constant()
    with torch.inference_mode():
        term([matched([0.9])], Criterion())
        term.reset()
    term([matched([0.9])], Criterion())
    assert term.compute() == 0.5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_refused(matched, value):
    with pytest.raises(ValueError, match=r"Constant\.score returned"):
        Constant(value)([matched([0.9])], Criterion())


def test_plot(matched):
    mpl.use("Agg")
    term = Precision()
    term([matched([0.9])], Criterion())
    figure, _ = term.plot()
    assert figure is not None
    figure, _ = term.plot([torch.tensor(0.1), torch.tensor(0.2)])
    assert figure is not None
