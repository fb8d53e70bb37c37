"""Losses on a ragged mask: exact figures, and completions of which no token counts."""

import math

import pytest
import torch

from vr1.losses import CISPO, GRPO, GSPO, DrGRPO, PolicyTerms, TokenMean

LOSSES = {
    "grpo": GRPO(kl_coef=0.1),
    "token_mean": TokenMean(kl_coef=0.1),
    "dr_grpo": DrGRPO(8, kl_coef=0.1),
    "gspo": GSPO(kl_coef=0.1),
    "cispo": CISPO(kl_coef=0.1),
}


def terms(log_ratios, advantages, mask, reference_gap=0.0):
    """Terms with these log-ratios and, on every token, this distance from the reference to the policy."""
    log_probs = (torch.tensor(log_ratios) - 2.0).requires_grad_()
    return PolicyTerms(
        log_probs=log_probs,
        old_log_probs=torch.full_like(log_probs, -2.0),
        reference_log_probs=log_probs.detach() + torch.as_tensor(reference_gap),
        advantages=torch.tensor(advantages),
        mask=torch.tensor(mask),
    )


# Two completions of three and one token; what stands outside the mask is far out, so that it would show.
RATIOS = [[[math.log(1.5), math.log(0.7), 0.0], [math.log(0.5), 3.0, -3.0]]]
MASK = [[[True, True, True], [True, False, False]]]


def test_figures_are_means_over_the_tokens_that_count():
    gaps = [[[0.0, math.log(2.0), math.log(0.5)], [math.log(4.0), 9.0, 9.0]]]
    _, figures = GRPO(0.1, 0.2, 0.2)(terms(RATIOS, [[1.0, -1.0]], MASK, gaps))
    assert float(figures["ratio"]) == pytest.approx((1.5 + 0.7 + 1.0 + 0.5) / 4)
    # Too likely where more is better: 1.5. Too unlikely where less is better: 0.5. Not 0.7, which may grow again.
    assert float(figures["clip_fraction"]) == pytest.approx(2 / 4)
    k3 = [0.0, 2 - math.log(2) - 1, 0.5 - math.log(0.5) - 1, 4 - math.log(4) - 1]
    assert float(figures["kl"]) == pytest.approx(sum(k3) / 4, rel=1e-5)
    assert not any(value.requires_grad for value in figures.values())


@pytest.mark.parametrize(
    ("ratio", "advantage", "clipped"),
    [(1.3, 1.0, True), (1.3, -1.0, False), (0.7, 1.0, False), (0.7, -1.0, True), (1.25, 1.0, False), (1.3, 0.0, False)],
)
def test_clipped_is_what_gains_nothing_by_going_on(ratio, advantage, clipped):
    given = terms([[[math.log(ratio)]]], [[advantage]], [[[True]]])
    loss, figures = GRPO(0.0, clip_low=0.2, clip_high=0.28)(given)
    assert float(figures["clip_fraction"]) == clipped
    [gradient] = torch.autograd.grad(loss, given.log_probs)
    assert float(gradient) == pytest.approx(0.0 if clipped else -ratio * advantage)


def test_a_sequence_has_one_ratio_which_is_clipped_as_a_whole():
    _, figures = GSPO(0.0, 0.2, 0.2)(terms(RATIOS, [[1.0, -1.0]], MASK))
    first = (1.5 * 0.7) ** (1 / 3)
    assert float(figures["ratio"]) == pytest.approx((3 * first + 0.5) / 4, rel=1e-5)
    assert float(figures["clip_fraction"]) == pytest.approx(1 / 4)


def part(given, rows):
    return PolicyTerms(
        **{
            name: getattr(given, name)[:, rows]
            for name in ("log_probs", "old_log_probs", "reference_log_probs", "advantages", "mask")
        }
    )


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_completion_without_a_token_is_as_if_it_were_not_there(loss):
    ratios = [[[0.1, -0.1, 0.3], [5.0, -9.0, 1.0], [-0.2, 0.2, 7.0]]]
    mask = [[[True, True, True], [False, False, False], [True, True, False]]]
    given = terms(ratios, [[1.0, 2.0, -0.5]], mask, 0.2)
    value, figures = loss(given)
    others = part(given, [0, 2])
    expected, expected_figures = loss(others)
    assert math.isfinite(float(value.detach()))
    torch.testing.assert_close(value, expected)
    for name, figure in figures.items():
        torch.testing.assert_close(figure, expected_figures[name], msg=name)
    [gradient] = torch.autograd.grad(value, given.log_probs)
    assert (gradient[~given.mask] == 0).all()
    assert (gradient[given.mask] != 0).all()
    assert float(loss.weight(given.mask)) == float(loss.weight(others.mask)) > 0


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_without_any_token_there_is_nothing_to_learn(loss):
    given = terms([[[0.5, -4.0], [9.0, 0.0]]], [[1.0, -1.0]], [[[False, False], [False, False]]], 0.2)
    value, figures = loss(given)
    assert float(value.detach()) == 0
    assert all(float(figure) == 0 for figure in figures.values())
    [gradient] = torch.autograd.grad(value, given.log_probs)
    assert (gradient == 0).all()
    assert float(loss.weight(given.mask)) == 0
