"""Losses against values computed by hand and against an independent implementation in plain Python."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from vr1.errors import UserError
from vr1.losses import CISPO, GRPO, GSPO, DrGRPO, PolicyTerms, TokenMean, k3


def terms(log_probs, old, advantages, mask, reference=None):
    return PolicyTerms(
        log_probs=log_probs, old_log_probs=old, reference_log_probs=reference, advantages=advantages, mask=mask
    )


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    shape = (3, 4, 6)
    old = -torch.rand(shape, generator=generator) * 3
    log_probs = (old + torch.randn(shape, generator=generator) * 0.4).requires_grad_()
    reference = old + torch.randn(shape, generator=generator) * 0.2
    advantages = torch.randn(shape[:2], generator=generator)
    lengths = torch.tensor([[6, 1, 3, 2], [4, 4, 5, 6], [1, 2, 6, 3]])
    return log_probs, old, advantages, torch.arange(6) < lengths[..., None], reference


def in_python(batch, kl_coef, low, high, sequence, average):
    """Token by token in Python floats."""
    log_probs, old, advantages, mask, reference = batch
    completions = []
    for b in range(3):
        for g in range(4):
            n = int(mask[b, g].sum())
            ratios = [float(log_probs[b, g, t] - old[b, g, t]) for t in range(n)]
            if sequence:
                ratios = [sum(ratios) / n] * n
            values = []
            for t, log_ratio in enumerate(ratios):
                ratio, advantage = math.exp(log_ratio), float(advantages[b, g])
                gain = min(ratio * advantage, max(min(ratio, 1 + high), 1 - low) * advantage)
                gap = float(reference[b, g, t] - log_probs[b, g, t])
                values.append(-gain + kl_coef * (math.exp(gap) - gap - 1))
            completions.append(values)
    return average(completions)


@pytest.mark.parametrize(
    "loss", [GRPO(), TokenMean(), DrGRPO(6), GSPO(), CISPO()], ids=["grpo", "token_mean", "dr_grpo", "gspo", "cispo"]
)
def test_equal_advantages_of_tokens_are_that_of_their_completion(batch, loss):
    log_probs, old, advantages, mask, reference = batch
    gradients, values = [], []
    for given in (advantages, advantages[..., None].expand_as(mask)):
        value, figures = loss(terms(log_probs, old, given, mask, reference))
        gradients += torch.autograd.grad(value, log_probs)
        values.append([value.detach(), *figures.values()])
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("sequence", [False, True], ids=["token", "gspo_token"])
def test_advantages_of_tokens_against_python(batch, sequence):
    """Loss and gradient token by token; GSPO-token has the sequence's ratio and the token's gradient."""
    log_probs, old, _, mask, _ = batch
    advantages = torch.randn(mask.shape, generator=torch.Generator().manual_seed(1))
    loss = GSPO(0.0, 0.2, 0.28) if sequence else GRPO(0.0, 0.2, 0.28)
    value, _ = loss(terms(log_probs, old, advantages, mask))
    [gradient] = torch.autograd.grad(value, log_probs)
    expected, total = torch.zeros(mask.shape), 0.0
    for b in range(3):
        for g in range(4):
            n = int(mask[b, g].sum())
            ratios = [float(log_probs[b, g, t].detach() - old[b, g, t]) for t in range(n)]
            ratios = [math.exp(value) for value in ([sum(ratios) / n] * n if sequence else ratios)]
            for t, ratio in enumerate(ratios):
                advantage = float(advantages[b, g, t])
                clipped = max(min(ratio, 1.28), 0.8)
                total -= min(ratio * advantage, clipped * advantage) / n / 12
                if ratio * advantage <= clipped * advantage:
                    expected[b, g, t] = -ratio * advantage / n / 12
    assert float(value.detach()) == pytest.approx(total, rel=1e-5)
    torch.testing.assert_close(gradient, expected)


def mean_of_means(completions):
    return sum(sum(values) / len(values) for values in completions) / len(completions)


def mean_of_tokens(completions):
    return sum(map(sum, completions)) / sum(map(len, completions))


@pytest.mark.parametrize(
    ("loss", "sequence", "average"),
    [
        (GRPO(0.2, 0.2, 0.28), False, mean_of_means),
        (TokenMean(0.2, 0.2, 0.28), False, mean_of_tokens),
        (
            DrGRPO(10, kl_coef=0.2, clip_low=0.2, clip_high=0.28),
            False,
            lambda completions: sum(map(sum, completions)) / (12 * 10),
        ),
        (GSPO(0.2, 0.2, 0.28), True, mean_of_means),
    ],
    ids=["grpo", "token_mean", "dr_grpo", "gspo"],
)
def test_losses_equal_their_definitions(batch, loss, sequence, average):
    log_probs, old, advantages, mask, reference = batch
    value, metrics = loss(terms(log_probs, old, advantages, mask, reference))
    assert float(value.detach()) == pytest.approx(in_python(batch, 0.2, 0.2, 0.28, sequence, average), rel=1e-5)
    assert 0 < float(metrics["clip_fraction"]) < 1
    value.backward()
    assert (log_probs.grad[~mask] == 0).all()
    assert (log_probs.grad[mask] != 0).any()


@pytest.mark.parametrize("loss", [GRPO, TokenMean, GSPO, CISPO, partial(DrGRPO, 6)])
def test_an_entropy_bonus(batch, loss):
    """It lowers the loss by the entropies, averaged as the loss averages its tokens."""
    log_probs, old, advantages, mask, reference = batch
    entropy = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    given = replace(terms(log_probs, old, advantages, mask, reference), entropy=entropy)
    plain, bonus = loss(), loss(entropy_coef=0.3)
    difference = plain(given)[0] - bonus(given)[0]
    per_completion = [float(entropy[b, g][mask[b, g]].detach().sum()) for b in range(3) for g in range(4)]
    lengths = mask.sum(-1).flatten().tolist()
    if isinstance(plain, TokenMean):
        mean = sum(per_completion) / sum(lengths)
    elif isinstance(plain, DrGRPO):
        mean = sum(per_completion) / 6 / 12
    else:
        mean = sum(total / n for total, n in zip(per_completion, lengths, strict=True)) / 12
    assert float(difference.detach()) == pytest.approx(0.3 * mean, rel=1e-4)
    [gradient] = torch.autograd.grad(bonus(given)[0], entropy)
    assert (gradient[mask] < 0).all()
    assert (gradient[~mask] == 0).all()
    with pytest.raises(UserError, match=r"entropy_coef=-0\.1 must not be negative"):
        loss(entropy_coef=-0.1)


def test_cispo_weighs_the_gradient_of_every_token(batch):
    """Loss and gradient in plain Python: out of range, the weight is clipped, and the gradient stays."""
    log_probs, old, advantages, mask, _ = batch
    value, _ = CISPO(kl_coef=0.0, clip_high=0.28)(terms(log_probs, old, advantages, mask))
    [gradient] = torch.autograd.grad(value, log_probs)
    total, count, expected = 0.0, int(mask.sum()), torch.zeros(mask.shape)
    for b, g, t in mask.nonzero().tolist():
        now = float(log_probs[b, g, t].detach())
        weight = min(math.exp(now - float(old[b, g, t])), 1.28) * float(advantages[b, g])
        total -= weight * now / count
        expected[b, g, t] = -weight / count
    assert float(value.detach()) == pytest.approx(total, rel=1e-5)
    torch.testing.assert_close(gradient, expected)
    on_policy = terms(log_probs, log_probs.detach(), advantages, mask)
    torch.testing.assert_close(
        *(
            torch.autograd.grad(loss(on_policy)[0], log_probs)[0]
            for loss in (CISPO(kl_coef=0.0), TokenMean(kl_coef=0.0))
        )
    )


def of_two_tokens(correction, bound=2.0):
    """Gradient, loss and figures for two tokens; the second completion has one token only."""
    log_probs = torch.tensor([[[-1.0, -2.0], [-0.5, -9.0]]], requires_grad=True)
    given = PolicyTerms(
        log_probs=log_probs,
        old_log_probs=log_probs.detach(),
        reference_log_probs=None,
        advantages=torch.tensor([[2.0, -1.0]]),
        mask=torch.tensor([[[True, True], [True, False]]]),
        # The sampler found the first token half as likely, the second four times as likely, the third 1.25 times.
        sampler_log_probs=log_probs.detach() - torch.tensor([[[2.0, 0.25], [0.8, 7.0]]]).log(),
    )
    loss, figures = GRPO(kl_coef=0.0, correction=correction, correction_bound=bound)(given)
    [gradient] = torch.autograd.grad(loss, log_probs)
    return gradient, float(loss.detach()), figures


@pytest.mark.parametrize(
    ("correction", "bound", "weights"),
    [
        ("none", 2.0, [1.0, 1.0, 1.0]),
        ("token", 4.0, [2.0, 0.25, 0.8]),
        ("token", 1.5, [1.5, 0.25, 0.8]),
        ("sequence", 2.0, [0.5, 0.5, 0.8]),
        ("sequence", 0.6, [0.5, 0.5, 0.6]),
    ],
)
def test_correction_weighs_the_policy_gradient(correction, bound, weights):
    """By hand: on policy the gradient of a token is -A / (tokens of its completion) / completions, times its weight."""
    gradient, loss, figures = of_two_tokens(correction, bound)
    first, second, third = weights
    expected = torch.tensor([[[-0.5 * first, -0.5 * second], [0.5 * third, 0.0]]])
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6)
    assert loss == pytest.approx(-((2.0 * first + 2.0 * second) / 2 - third) / 2, rel=1e-6)
    if correction == "none":
        assert "effective_samples" not in figures
    else:
        size = sum(weights) ** 2 / sum(weight**2 for weight in weights) / 3
        assert float(figures["effective_samples"]) == pytest.approx(size, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "named"), [({"correction": "each"}, "correction='each'"), ({"correction_bound": 0.0}, "bound=0.0")]
)
def test_corrections_that_do_not_exist_are_errors(settings, named):
    with pytest.raises(ValueError, match=named):
        GRPO(**settings)


@pytest.mark.parametrize(
    ("loss", "sequence", "average"),
    [
        (GRPO(), False, mean_of_means),
        (TokenMean(), False, mean_of_tokens),
        (DrGRPO(10), False, lambda completions: sum(map(sum, completions)) / (12 * 10)),
        (GSPO(), True, mean_of_means),
    ],
    ids=["grpo", "token_mean", "dr_grpo", "gspo"],
)
def test_without_settings_they_clip_at_a_fifth_and_weigh_the_kl_by_a_fifth(batch, loss, sequence, average):
    log_probs, old, advantages, mask, reference = batch
    value, _ = loss(terms(log_probs, old, advantages, mask, reference))
    assert float(value.detach()) == pytest.approx(in_python(batch, 0.2, 0.2, 0.2, sequence, average), rel=1e-5)
    assert not loss.mask_truncated


def test_first_update_is_the_policy_gradient():
    """With the ratio 1 the gradient of token t is -A / (tokens of its completion) / completions."""
    log_probs = torch.tensor([[[-1.0, -2.0], [-0.5, -3.0]]], requires_grad=True)
    mask = torch.tensor([[[True, True], [True, False]]])
    loss, metrics = GRPO(kl_coef=0.0)(terms(log_probs, log_probs.detach(), torch.tensor([[2.0, -1.0]]), mask))
    assert float(loss.detach()) == pytest.approx(-(2.0 + -1.0) / 2)
    loss.backward()
    torch.testing.assert_close(log_probs.grad, torch.tensor([[[-0.5, -0.5], [0.5, 0.0]]]))
    assert float(metrics["clip_fraction"]) == 0
    assert "kl" not in metrics


def test_clipped_tokens_have_no_gradient():
    log_probs = torch.tensor([[[0.5, -0.5]]], requires_grad=True)
    old = torch.zeros(1, 1, 2)
    everything = torch.ones(1, 1, 2, dtype=torch.bool)
    GRPO(kl_coef=0.0)(terms(log_probs, old, torch.tensor([[1.0]]), everything))[0].backward()
    assert log_probs.grad[0, 0, 0] == 0, "too likely already: no further push up"
    assert log_probs.grad[0, 0, 1] < 0, "less likely than before: push up"


def test_clip_high_lets_likely_tokens_grow_further():
    log_probs = torch.tensor([[[math.log(1.25)]]], requires_grad=True)
    arguments = (torch.zeros(1, 1, 1), torch.tensor([[1.0]]), torch.ones(1, 1, 1, dtype=torch.bool))
    assert float(GRPO(0.0, 0.2, 0.2)(terms(log_probs, *arguments))[0].detach()) == pytest.approx(-1.2)
    assert float(GRPO(0.0, 0.2, 0.28)(terms(log_probs, *arguments))[0].detach()) == pytest.approx(-1.25)


@pytest.mark.parametrize("loss", [GRPO(), TokenMean(), GSPO()], ids=["grpo", "token_mean", "gspo"])
def test_a_completion_without_counted_tokens_changes_nothing(batch, loss):
    """The loss and its gradient are those of the batch without that completion."""
    log_probs, old, advantages, mask, reference = batch
    masked = mask.clone()
    masked[0, 0] = False
    with_it, _ = loss(terms(log_probs, old, advantages, masked, reference))
    with_it.backward()
    # The other 11 completions, as 11 prompts of one completion each.
    others = [value.detach().flatten(0, 1)[1:, None] for value in (log_probs, old, advantages, mask, reference)]
    others[0].requires_grad_()
    without, _ = loss(terms(*others))
    without.backward()
    torch.testing.assert_close(with_it, without)
    torch.testing.assert_close(log_probs.grad.flatten(0, 1)[1:, None], others[0].grad)
    assert (log_probs.grad[0, 0] == 0).all()


def test_gspo_gradient_is_shared_by_the_sequence():
    log_probs = torch.tensor([[[0.1, -0.3, 0.2]]], requires_grad=True)
    everything = torch.ones(1, 1, 3, dtype=torch.bool)
    GSPO(kl_coef=0.0)(terms(log_probs, torch.zeros(1, 1, 3), torch.tensor([[1.0]]), everything))[0].backward()
    torch.testing.assert_close(log_probs.grad, torch.full((1, 1, 3), -1 / 3))


def test_k3_is_unbiased_and_never_negative():
    policy = torch.tensor([0.2, 0.3, 0.5])
    reference = torch.tensor([0.4, 0.4, 0.2])
    estimate = k3(policy.log(), reference.log())
    assert (estimate >= 0).all()
    exact = (policy * (policy / reference).log()).sum()
    torch.testing.assert_close((policy * estimate).sum(), exact)


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"kl_coef": -0.1}, "kl_coef"), ({"clip_low": 1.0}, "clip_low"), ({"clip_high": -1.0}, "clip_high")],
)
def test_settings_out_of_range_are_errors(settings, named):
    with pytest.raises(ValueError, match=named):
        GRPO(**settings)


def test_dr_grpo_needs_a_length():
    with pytest.raises(ValueError, match="max_tokens"):
        DrGRPO(max_tokens=0)
