"""Angles of the rotary positions of new tokens.

Shape letters: R rows, D hidden size, E head width.
"""

import torch
from torch import Tensor

from vr1.policy.policy import Policy

__all__ = ["Rotation"]


class Rotation:
    """Cosine and signed sine of rotary positions, by the language model's own embedding of them.

    Rotation is ``x * cosine + (-second half, first half) * sine``. With the signs in the sine, the halves only swap.

    Args:
        policy: a policy that shares prompts.
        end: all positions will be below it, so that their angles can be computed once; None computes them for each
            token.
    """

    def __init__(self, policy: Policy, end: int | None) -> None:
        self._policy, self._rotary = policy, policy.base.model.language_model.rotary_emb
        self._angles: tuple[Tensor, Tensor] | None = None
        # The angles of these types depend on the longest sequence so far.
        if end is not None and getattr(self._rotary, "rope_type", "default") not in {"dynamic", "longrope"}:
            embed = policy.base.get_input_embeddings()
            positions = torch.arange(end, device=embed.weight.device)
            self._angles = self._compute(embed(positions[:1]), positions)

    def __call__(self, states: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine ``[R, 1, E]``.

        Args:
            states: of the precision of the angles.
            positions: ``[R]`` int64.
        """
        if self._angles is None:
            return self._compute(states, positions)
        cosine, signed_sine = (part.index_select(0, positions) for part in self._angles)
        return cosine, signed_sine

    def _compute(self, states: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        assert self._policy.architecture is not None
        position_ids = self._policy.architecture.position_ids(self._policy.text_positions(positions[:, None]))
        cosine, sine = self._rotary(states, position_ids)
        half = sine.shape[-1] // 2
        return cosine, torch.cat([-sine[..., :half], sine[..., half:]], dim=-1)
