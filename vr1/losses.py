"""Log-probabilities and advantages -> loss: the members of the GRPO family.

All of them maximise ``min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A)``, penalise the KL divergence to the
reference, and can reward entropy; they differ in the unit of the ratio (token or sequence) and in how tokens are
averaged.

Shape letters: B prompts, G group size, C completion tokens.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vr1.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PolicyTerms:
    """The inputs of a loss.

    Attributes:
        log_probs: ``[B, G, C]`` float32 of the sampled tokens under the policy, with gradient.
        old_log_probs: ``[B, G, C]`` float32 under the policy that sampled them.
        reference_log_probs: ``[B, G, C]`` float32 under the reference, or None without a reference.
        advantages: ``[B, G]`` float32 of the completions, or ``[B, G, C]`` of their tokens.
        mask: ``[B, G, C]`` bool, true on the tokens that count.
        sampler_log_probs: ``[B, G, C]`` float32 as the sampler computed them; only a correction needs them.
        entropy: ``[B, G, C]`` float32 of the tokens' distributions, with gradient; only an entropy bonus needs it.
    """

    log_probs: Tensor
    old_log_probs: Tensor
    reference_log_probs: Tensor | None
    advantages: Tensor
    mask: Tensor
    sampler_log_probs: Tensor | None = None
    entropy: Tensor | None = None


def k3(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(policy || reference) per token: ``exp(d) - d - 1`` with ``d = reference - policy``.

    It is unbiased and never negative.

    Args:
        log_probs: of the sampled tokens under the policy, of any shape.
        reference_log_probs: of the same tokens under the reference.

    Returns:
        The estimate, in nats, of the same shape.

    Example:
        >>> k3(torch.tensor([0.0, -1.0]), torch.tensor([0.0, 0.0]))
        tensor([0.0000, 0.7183])

    Source: http://joschu.net/blog/kl-approx.html
    """
    difference = reference_log_probs - log_probs
    return torch.expm1(difference) - difference


class PolicyLoss(ABC):
    """A clipped policy-gradient loss.

    Args:
        kl_coef: weight of the KL term (the paper's beta); 0 trains without a reference model.
        clip_low: the ratio is clipped below ``1 - clip_low``.
        clip_high: the ratio is clipped above ``1 + clip_high``; more than ``clip_low`` is DAPO's clip-higher.
        mask_truncated: leave out completions that were cut at the token limit.
        correction: importance weights for a sampler whose probabilities are not quite those of the training pass (other
            kernels, 16-bit numbers): ``none``; of each ``token``, ``p_training / p_sampler``; or of each ``sequence``,
            their product. They weigh the policy gradient, not the KL term.
        correction_bound: larger weights are set to this.
        entropy_coef: weight of an entropy bonus, which keeps the answers of a group different; 0 has none, 0.001
            to 0.01 is usual.

    Raises:
        UserError: a negative coefficient, ``clip_low`` of 1 or more, a ``correction_bound`` of 0 or less, or an unknown
            ``correction``.

    Source: truncated importance sampling, Yao et al., https://fengyao.notion.site/off-policy-rl; entropy bonus, Mnih et
    al., arXiv 1602.01783.
    """

    def __init__(
        self,
        kl_coef: float = 0.2,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        mask_truncated: bool = False,
        correction: Literal["none", "token", "sequence"] = "none",
        correction_bound: float = 2.0,
        entropy_coef: float = 0.0,
    ) -> None:
        if kl_coef < 0:
            raise UserError(f"loss: kl_coef={kl_coef} must not be negative; 0 trains without a reference")
        if not 0 <= clip_low < 1 or clip_high < 0:
            raise UserError(
                f"loss: clip_low={clip_low} must lie in 0..1 and clip_high={clip_high} must not be negative"
            )
        self.kl_coef, self.clip_low, self.clip_high = kl_coef, clip_low, clip_high
        if correction not in ("none", "token", "sequence"):
            raise UserError(f"loss: correction={correction!r} must be 'none', 'token' or 'sequence'")
        if not correction_bound > 0:
            raise UserError(f"loss: correction_bound={correction_bound} must be above 0; 2 is usual")
        if entropy_coef < 0:
            raise UserError(f"loss: entropy_coef={entropy_coef} must not be negative; 0 has no entropy bonus")
        self.mask_truncated, self.entropy_coef = mask_truncated, entropy_coef
        self.correction, self.correction_bound = correction, correction_bound

    def __call__(self, terms: PolicyTerms) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch: its `total` divided by its `weight`, 0 where no token counts.

        Processes whose weights differ must multiply their losses by them, so that the mean over processes is the loss
        of all completions.

        Args:
            terms: the inputs, ``[B, G, C]``.

        Returns:
            The loss, a scalar with gradient, and scalars to log without: ``clip_fraction``, ``ratio``, with a reference
            ``kl``, and with a correction ``effective_samples``, the effective sample size of the weights as a share of
            the tokens.
        """
        log_ratio = self.log_ratio(terms)
        ratio = log_ratio.exp()
        advantages = terms.advantages if terms.advantages.dim() == 3 else terms.advantages[..., None]
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        per_token = -self.gain(ratio, clipped, advantages, terms)
        mask = terms.mask.to(per_token.dtype)
        count = mask.sum().clamp(min=1)
        metrics = {
            "clip_fraction": ((ratio * advantages > clipped * advantages) * mask).sum() / count,
            "ratio": (ratio.detach() * mask).sum() / count,
        }
        if self.correction != "none":
            weights = self.importance_weights(terms) * mask
            per_token = per_token * weights
            squares = (count * weights.square().sum()).clamp(min=torch.finfo(weights.dtype).tiny)
            metrics["effective_samples"] = weights.sum().square() / squares
        if terms.reference_log_probs is not None:
            kl = k3(terms.log_probs, terms.reference_log_probs)
            per_token = per_token + self.kl_coef * kl
            metrics["kl"] = (kl.detach() * mask).sum() / count
        if self.entropy_coef:
            assert terms.entropy is not None, "an entropy bonus needs the entropies"
            per_token = per_token - self.entropy_coef * terms.entropy
        return self.total(per_token * mask, mask) / self.weight(mask).clamp(min=1), metrics

    def log_ratio(self, terms: PolicyTerms) -> Tensor:
        """Logarithm ``[B, G, C]`` of new over old probability of each token."""
        return terms.log_probs - terms.old_log_probs

    def importance_weights(self, terms: PolicyTerms) -> Tensor:
        """Truncated weights of the tokens, ``min(p_training / p_sampler, correction_bound)``, without gradient.

        Returns:
            ``[B, G, C]``, or ``[B, G, 1]`` for weights of sequences.
        """
        assert terms.sampler_log_probs is not None, "a correction needs the sampler's log-probs"
        gap = (terms.old_log_probs - terms.sampler_log_probs).masked_fill(~terms.mask.bool(), 0.0)
        if self.correction == "sequence":
            gap = gap.sum(-1, keepdim=True)
        return gap.exp().clamp(max=self.correction_bound)

    def gain(self, ratio: Tensor, clipped: Tensor, advantages: Tensor, terms: PolicyTerms) -> Tensor:
        """What each token adds to the objective.

        Args:
            ratio: ``[B, G, C]``, with gradient.
            clipped: ``[B, G, C]``, the ratio in the clip range.
            advantages: ``[B, G, C]`` or ``[B, G, 1]``.
            terms: the inputs of the loss.

        Returns:
            ``[B, G, C]``; ``min(ratio * A, clipped * A)``.
        """
        return torch.minimum(ratio * advantages, clipped * advantages)

    @abstractmethod
    def total(self, per_token: Tensor, mask: Tensor) -> Tensor:
        """Sum of the masked losses, in the unit that `weight` counts.

        Args:
            per_token: ``[B, G, C]`` float32, 0 where the mask is.
            mask: ``[B, G, C]`` float or bool.
        """

    def weight(self, mask: Tensor) -> Tensor:
        """The number of completions with at least one token that counts."""
        return (mask.sum(-1) > 0).sum()


class GRPO(PolicyLoss):
    """Mean over completions of the mean over their tokens.

    Source: DeepSeekMath, arXiv 2402.03300, Eq. 3; the loss of Vision-R1, arXiv 2503.18013.

    Example:
        >>> one = torch.zeros(1, 2, 1)
        >>> terms = PolicyTerms(log_probs=one, old_log_probs=one, reference_log_probs=None,
        ...     advantages=torch.tensor([[1.0, -3.0]]), mask=torch.ones(1, 2, 1, dtype=torch.bool))
        >>> GRPO()(terms)[0]
        tensor(1.)
    """

    def total(self, per_token: Tensor, mask: Tensor) -> Tensor:
        """Sum of the completions' means; a completion without tokens that count adds 0."""
        return (per_token.sum(-1) / mask.sum(-1).clamp(min=1)).sum()


class TokenMean(PolicyLoss):
    """Mean over all tokens of the batch: a long completion has more weight than a short one.

    Source: DAPO, arXiv 2503.14476, Eq. 12.
    """

    def total(self, per_token: Tensor, mask: Tensor) -> Tensor:
        """Sum over tokens."""
        return per_token.sum()

    def weight(self, mask: Tensor) -> Tensor:
        """The number of tokens."""
        return mask.sum()


class CISPO(TokenMean):
    """The policy gradient of every token, with its ratio as a weight that is clipped from above.

    ``sg(min(ratio, 1 + clip_high)) * A * log_prob``, where ``sg`` stops the gradient: unlike in GRPO, a token whose
    ratio is out of range still has a gradient. ``clip_low`` counts for the logged ``clip_fraction`` alone. With one
    update per rollout its gradient is that of `TokenMean`; its value is not near 0.

    Source: MiniMax-M1, arXiv 2506.13585, Eq. 4 and 5 (the lower bound is not used there either).
    """

    def gain(self, ratio: Tensor, clipped: Tensor, advantages: Tensor, terms: PolicyTerms) -> Tensor:
        """The weighted log-probability of each token."""
        return ratio.detach().clamp(max=1 + self.clip_high) * advantages * terms.log_probs


class DrGRPO(PolicyLoss):
    """Sum over tokens divided by a constant, which does not favour short wrong answers over long ones.

    Args:
        max_tokens: the constant, usually the rollout's ``max_new_tokens``.
        **kwargs: settings of `PolicyLoss`.

    Raises:
        UserError: ``max_tokens`` is less than 1.

    Source: Dr. GRPO, arXiv 2503.20783; combine it with ``GroupAdvantage(scale="none")``.
    """

    def __init__(self, max_tokens: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if max_tokens < 1:
            raise UserError(f"loss: max_tokens={max_tokens} must be at least 1; give the rollout's max_new_tokens")
        self.max_tokens = max_tokens

    def total(self, per_token: Tensor, mask: Tensor) -> Tensor:
        """Sum over tokens, divided by ``max_tokens``."""
        return per_token.sum() / self.max_tokens


class GSPO(GRPO):
    """One ratio per sequence: the geometric mean of its tokens' ratios.

    Each token's ratio has the value of the sequence's, and the gradient of its own log-probability (GSPO-token). Where
    all tokens have one advantage, loss and gradient are those of GSPO.

    Source: GSPO, arXiv 2507.18071, Eq. 7, and Eq. 13 to 15 for advantages of tokens; it uses a much smaller clip range,
    such as 3e-4 and 4e-4.
    """

    def log_ratio(self, terms: PolicyTerms) -> Tensor:
        """The sequence's mean log-ratio for each of its tokens, with the gradient of the token's log-probability."""
        mask = terms.mask.to(terms.log_probs.dtype)
        own = terms.log_probs.detach()
        log_ratio = (own - terms.old_log_probs) * mask
        mean = log_ratio.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
        return mean + (terms.log_probs - own)
