"""The rows of a rollout and what is sampled of them.

Shape letters: B prompts, G group size, C completion tokens at most, R rows in the cache, V vocabulary.
"""

import torch
from torch import Tensor

from vr1.policy.policy import Policy
from vr1.rollout.sampling import Decoded, Sampling, sample_token
from vr1.types import Prefix

__all__ = ["SampledRows"]


class SampledRows:
    """Samples a token for every row, again and again, and removes rows that have ended.

    All that a token changes is in tensors which keep their addresses, the number of tokens so far included: `sample`
    reads nothing on the host, and can be replayed (`vr1.rollout.graphs`).

    Args:
        policy: the policy.
        prefix: its prefill of the B prompts.
        sampling: group size, temperature, top-p and length limit.
        uniform: ``[B * G, C]`` uniform random numbers in [0, 1).

    Attributes:
        sampled: ``[R]`` int64, the latest token of each row.
        position: ``[R]`` int64, its rotary position.
        running: ``[R]`` bool, whether the row goes on after it.
    """

    def __init__(self, policy: Policy, prefix: Prefix, sampling: Sampling, uniform: Tensor) -> None:
        total, limit = uniform.shape
        device = prefix.state.device
        self._sampling, self._uniform = sampling, uniform.double().contiguous()
        self._forbidden = torch.tensor(policy.forbidden_tokens, dtype=torch.long, device=device)
        self._ends = torch.tensor(policy.eos_tokens, device=device)
        # [1] int64: tokens of each row so far.
        self._count = torch.zeros(1, dtype=torch.long, device=device)
        self._tokens = torch.full((total, limit), policy.eos_tokens[0], device=device)
        self._log_probs = torch.zeros(total, limit, dtype=torch.float32, device=device)
        self._lengths = torch.zeros(total, dtype=torch.long, device=device)
        self.sampled = torch.zeros(total, dtype=torch.long, device=device)
        self.position = prefix.next_position.repeat_interleave(sampling.group_size) - 1
        self.running = torch.ones(total, dtype=torch.bool, device=device)
        # For each row, its row in the result.
        self._index = torch.arange(total, device=device)
        self._result = Decoded(
            tokens=self._tokens.clone(),
            lengths=self._lengths.clone(),
            finished=~self.running,
            log_probs=self._log_probs.clone(),
        )

    @property
    def state(self) -> list[Tensor]:
        """The tensors that a token changes and the next one reads."""
        return [self._count, self._lengths, self.sampled, self.position, self.running]

    def sample(self, logits: Tensor) -> None:
        """Sample the next token of each row.

        Args:
            logits: ``[R, V]`` float32; changed in place.
        """
        logits.index_fill_(1, self._forbidden, -torch.inf)
        sampled, log_probs = sample_token(logits, self._sampling, self._uniform.index_select(1, self._count)[:, 0])
        self._tokens.index_copy_(1, self._count, torch.where(self.running, sampled, self._ends[0])[:, None])
        self._log_probs.index_copy_(1, self._count, log_probs.masked_fill(~self.running, 0.0)[:, None])
        self._lengths.add_(self.running)
        self.running.logical_and_((sampled[:, None] != self._ends).all(1))
        self.sampled.copy_(sampled)
        self.position.add_(1)
        self._count.add_(1)

    def keep(self, rows: Tensor) -> None:
        """Remove all rows but some.

        Args:
            rows: ``[R']`` int64, the rows that stay, ascending.
        """
        self._write()
        self._uniform, self._index = self._uniform[rows], self._index[rows]
        self._tokens, self._log_probs, self._lengths = self._tokens[rows], self._log_probs[rows], self._lengths[rows]
        self.sampled, self.position, self.running = self.sampled[rows], self.position[rows], self.running[rows]

    def result(self) -> Decoded:
        """All B * G rows, as long as the longest."""
        self._write()
        longest = int(self._result.lengths.max())
        tokens, lengths, finished, log_probs = self._result
        return Decoded(tokens[:, :longest], lengths, finished, log_probs[:, :longest])

    def _write(self) -> None:
        values = (self._tokens, self._lengths, ~self.running, self._log_probs)
        for whole, part in zip(self._result, values, strict=True):
            whole.index_copy_(0, self._index, part)
