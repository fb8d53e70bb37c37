"""The interface of samplers, and the default one.

Training, resampling, evaluation and prediction know `Sampler` only; which one they use is the setting
``model.sampler``.

Shape letters: B prompts, G group size, C completion tokens.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from vr1.errors import UserError
from vr1.policy.loading import PolicySource
from vr1.policy.policy import Policy, join_prefixes
from vr1.prompts import PromptBatch, PromptEncoder
from vr1.rollout.batching import consecutive, join_rollouts, select_prefix, select_prompts
from vr1.rollout.generate import generate
from vr1.rollout.graphs import StepGraphs
from vr1.rollout.kernels import Kernels
from vr1.rollout.memory import rows_that_fit
from vr1.rollout.sampling import Sampling
from vr1.rollout.weights import RolloutWeights, check_room
from vr1.types import Prefix, Rollout

__all__ = ["Sampler", "SharedPrefixSampler", "Workload"]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a sampler will be used for, as far as it is known before any weights are loaded.

    Args:
        source: the policy that it samples from, and how that is loaded.
        encoder: makes the prompts; it has the model's processor with the policy's limits of resolution.
        dtype: precision of a forward of the policy, as a name of torch.
        max_prompt_tokens: tokens of the longest prompt.
        max_new_tokens: tokens of the longest completion.
        device: the device of this process.
        processes: processes on this machine that sample, each with a sampler of its own.
    """

    source: PolicySource
    encoder: PromptEncoder
    dtype: str
    max_prompt_tokens: int
    max_new_tokens: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    processes: int = 1


class Sampler(ABC):
    """Samples completions of prompts.

    The module calls `setup` once, `synchronise` after the weights may have changed, and `sample` for every rollout.

    Attributes:
        computes_with_policy: `sample` runs the policy itself, so that a strategy that shards its weights gathers them
            for as long; otherwise the sampler has weights of its own, which `synchronise` replaces.
    """

    computes_with_policy: bool = True

    def setup(self, workload: Workload) -> None:
        """Check that this sampler can do its work, before any weights are loaded.

        Args:
            workload: what it will be used for.

        Raises:
            UserError: it cannot.
        """
        del workload  # The default sampler works with every policy.

    def synchronise(self, policy: Policy, prompts: PromptBatch) -> None:
        """Take over the policy's present weights; to be called by all processes together.

        Args:
            policy: the policy.
            prompts: B prompts that are about to be answered, for a sampler that compares its results with the policy's.

        Raises:
            UserError: the sampler does not compute what the policy computes.
        """
        del policy, prompts  # A sampler that computes with the policy has its weights.

    @abstractmethod
    def sample(
        self,
        policy: Policy,
        prompts: PromptBatch,
        sampling: Sampling,
        tokenizer: Any,
        draw: int = 0,
        prefix: Prefix | None = None,
        with_graph: bool = False,
    ) -> Rollout:
        """Sample G completions for each of B prompts.

        The completions of a record depend on the weights, ``draw``, the record and the place in its group.

        Args:
            policy: the model.
            prompts: B prompts.
            sampling: group size, temperature, top-p and length limit.
            tokenizer: decodes the tokens.
            draw: seed of this rollout; training passes another one for each step.
            prefix: the policy's prefill of the prompts with its present weights; a sampler need not use it.
            with_graph: whether the loss of an update can use the prefix that this makes (`vr1.rollout.generate`).

        Returns:
            The rollout, ``tokens`` ``[B, G, C]``, with a prefix if this sampler makes one.
        """

    def check_gap(self, mean: Tensor, sampling: Sampling) -> None:
        """Check the mean difference of log-probs between this sampler and the policy, on completions to train on.

        Args:
            mean: of the absolute differences of all tokens, in nats; a scalar, which on a GPU is waited for when it is
                read.
            sampling: how they were sampled.

        Raises:
            UserError: the difference is more than computing in another order explains.
        """
        del mean, sampling  # A sampler that computes with the policy cannot fall behind it.

    def parts(self, prompts: int, group: int, fitting: int | None) -> list[range]:
        """Which of consecutive prompts are sampled at the same time.

        Args:
            prompts: number of prompts, of which `sample` is called for all together.
            group: completions of each.
            fitting: completions that fit in the memory at the same time; None: all.

        Returns:
            The prompts of each part, in order.
        """
        del group, fitting  # A sampler that does not compute with the policy divides them by itself.
        return [range(prompts)]

    def memory(self, source: PolicySource, dtype: str, parameters: int) -> tuple[dict[str, float], dict[str, float]]:
        """Bytes by part that this sampler takes beside the policy, where it does not compute with that.

        Args:
            source: the policy that it samples from.
            dtype: precision of a forward of the policy, as a name of torch.
            parameters: number of the model's parameters, without adapters.

        Returns:
            The bytes in a rollout, and those outside of one.
        """
        del source, dtype, parameters
        return {}, {}

    def describe(self) -> dict[str, Any]:
        """Plain values that tell the answers of this sampler from those of another one."""
        return {"sampler": type(self).__name__}


class SharedPrefixSampler(Sampler):
    """vr1's own decoder: it runs the policy itself, with image and prompt computed once per group.

    Nothing is installed, copied or compared, and the forward of the prompts serves the first update too. Models that
    cannot share prompts are decoded by transformers' ``generate``.

    Args:
        max_rows: completions that are decoded at the same time, at most; the groups of one prompt stay together, so
            that at least one group is. ``auto`` decodes all at once on a CPU; on a GPU, as many as fit in its free
            memory by prediction. The sampled tokens do not depend on it.
        graphs: replay each decoding step as a CUDA graph (`vr1.rollout.graphs`): ``auto`` on a GPU, where it saves the
            host's time for launching kernels, or ``off``. The completions are the same.
        kernels: decode with vr1's own kernels (`vr1.rollout.kernels`), for models that
            `vr1.rollout.decoder.LayerDecoder` decodes: ``auto`` on a GPU, and on a CPU in float32 where there is a C
            compiler; or ``off``. They round differently than torch's operators.

    Raises:
        UserError: ``max_rows`` is below 1.

    Example:
        >>> from vr1.data.synthetic import SceneSource
        >>> source = PolicySource()
        >>> prompts = PromptEncoder(source.processor(), source.family(), 1024)([SceneSource(length=1)[0]])
        >>> sampling = Sampling(group_size=2, max_new_tokens=4)
        >>> tokenizer = source.processor().tokenizer
        >>> SharedPrefixSampler().sample(source.load().eval(), prompts, sampling, tokenizer).tokens.shape
        torch.Size([1, 2, 4])
    """

    def __init__(
        self,
        max_rows: int | Literal["auto"] = "auto",
        graphs: Literal["auto", "off"] = "auto",
        kernels: Literal["auto", "off"] = "auto",
    ) -> None:
        if max_rows != "auto" and max_rows < 1:
            raise UserError(f"sampler.max_rows={max_rows} must be at least 1, or auto")
        self.max_rows: int | Literal["auto"] = max_rows
        self.graphs: Literal["auto", "off"] = graphs
        self.kernels: Literal["auto", "off"] = kernels
        self._graphs, self._weights, self._kernels = StepGraphs(), RolloutWeights(), Kernels()

    def setup(self, workload: Workload) -> None:
        """Check that the weights have room in the form that the policy's ``rollout_weights`` requires.

        Raises:
            UserError: they have not.
        """
        check_room(workload.source, workload.dtype, workload.device)

    def captures(self, device: torch.device) -> bool:
        """Whether decoding steps are captured on a device."""
        return self.graphs == "auto" and device.type == "cuda"

    def parts(self, prompts: int, group: int, fitting: int | None) -> list[range]:
        """As of every sampler: parts of at most ``max_rows`` completions and of about one size.

        Each part takes as long as its longest completion.

        Example:
            >>> SharedPrefixSampler().parts(5, group=4, fitting=11)
            [range(0, 1), range(1, 3), range(3, 5)]
            >>> SharedPrefixSampler(max_rows=12).parts(5, group=4, fitting=None)
            [range(0, 2), range(2, 5)]
        """
        rows = fitting if self.max_rows == "auto" else self.max_rows
        size = prompts if rows is None else max(1, rows // group)
        number = -(-prompts // size)
        return consecutive([prompts * (part + 1) // number - prompts * part // number for part in range(number)])

    @torch.no_grad()
    def sample(
        self,
        policy: Policy,
        prompts: PromptBatch,
        sampling: Sampling,
        tokenizer: Any,
        draw: int = 0,
        prefix: Prefix | None = None,
        with_graph: bool = False,
    ) -> Rollout:
        """As of every sampler; `vr1.rollout.generate.generate`, of at most ``max_rows`` completions at a time.

        What is decoded in several parts has no prefix, whose keys and values would take the memory that the parts
        save, unless the prefix is needed ``with_graph``.
        """
        fitting = None
        if self.max_rows == "auto":
            fitting = rows_that_fit(policy, prompts, sampling, self._weights.reserved(policy))
        graphs = self._graphs if self.captures(prompts.tokens.device) else None
        how = (with_graph, self._weights, graphs, None if self.kernels == "off" else self._kernels)
        parts = self.parts(len(prompts), sampling.group_size, fitting)
        if len(parts) == 1:
            return generate(policy, prompts, sampling, tokenizer, draw, prefix, *how)
        rollouts = []
        for part in parts:
            own = None if prefix is None else select_prefix(prefix, part)
            selected = select_prompts(prompts, part)
            sampled = generate(policy, selected, sampling, tokenizer, draw, own, *how)
            rollouts.append(sampled if with_graph else replace(sampled, prefix=None))
        prefixes = [rollout.prefix for rollout in rollouts if rollout.prefix is not None]
        if not with_graph or len(prefixes) < len(parts):
            return join_rollouts(rollouts)
        with torch.enable_grad():
            prefix = join_prefixes(prefixes, [torch.tensor(part) for part in parts])
        return join_rollouts(rollouts, prefix)
