"""Decoding with image and prompt computed once per group.

Shape letters: B prompts, G group size, C completion tokens, R running rows, V vocabulary.
"""

from collections.abc import Callable

from torch import Tensor

from vr1.policy.policy import Policy
from vr1.rollout.cache import GroupCache, StaticGroupCache
from vr1.rollout.decoder import Decoder, make_decoder, runs_layers
from vr1.rollout.graphs import GraphError, StepGraphs, StepState
from vr1.rollout.kernels import Kernels, kernel_cache
from vr1.rollout.kernels.cpu import MAX_ROWS, CpuDecoder, CpuKernelCache, CpuRows, network_of
from vr1.rollout.rows import SampledRows
from vr1.rollout.sampling import Decoded, Sampling
from vr1.rollout.weights import RolloutWeights
from vr1.types import Prefix

# Finished rows leave the cache when at most this share of its rows is running: this copies the keys and values of the
# remaining completions once and makes every later step cheaper.
_COMPACT_BELOW = 0.75
# A step that is captured has to be captured again then, and reads weights for most of its time.
_COMPACT_GRAPH_BELOW = 0.25
# On a GPU, tokens between two looks for rows that have ended.
_CHECK_EVERY = 16


def decode_shared(
    policy: Policy,
    prefix: Prefix,
    sampling: Sampling,
    uniform: Tensor,
    check_every: int | None = None,
    weights: RolloutWeights | None = None,
    graphs: StepGraphs | None = None,
    kernels: Kernels | None = None,
) -> Decoded:
    """Sample G completions of each of B prompts.

    Args:
        policy: a policy that shares prompts.
        prefix: its prefill of the B prompts.
        sampling: group size, temperature, top-p and length limit.
        uniform: ``[B * G, max_new_tokens]`` uniform random numbers in [0, 1).
        check_every: tokens between two looks for rows that have ended; the result does not depend on it. None looks
            after every token on a CPU and after every 16 on a GPU, which works behind the host: each look waits for it.
        weights: decides whether 4-bit weights are dequantized; None decides for this rollout alone.
        graphs: captures steps and replays them; None runs each step eagerly.
        kernels: decides whether vr1's own kernels are used; None uses torch's operators.

    Returns:
        B * G rows of completions.
    """
    by_layers = runs_layers(policy)
    dequantize = (weights or RolloutWeights()).choose(policy, prefix, sampling, by_layers)
    check_every = check_every or (1 if prefix.state.device.type == "cpu" else _CHECK_EVERY)
    heads = policy.base.config.get_text_config().num_attention_heads

    def decode(with_kernels: bool) -> Decoded:
        if graphs is not None and graphs.worthwhile(sampling.max_new_tokens):
            try:
                return _decode(policy, prefix, sampling, uniform, check_every, dequantize, with_kernels, graphs)
            except GraphError as error:
                graphs.give_up(error)
        return _decode(policy, prefix, sampling, uniform, check_every, dequantize, with_kernels, None)

    if kernels is not None and by_layers and kernels.fit(prefix, heads):
        try:
            return decode(True)
        except kernels.errors() as error:
            kernels.give_up(error)
    return decode(False)


def _decode(
    policy: Policy,
    prefix: Prefix,
    sampling: Sampling,
    uniform: Tensor,
    check_every: int,
    dequantize: bool,
    kernels: bool,
    graphs: StepGraphs | None,
) -> Decoded:
    group, limit = sampling.group_size, sampling.max_new_tokens
    cache, decoder, kind = _prepare(policy, prefix, sampling, dequantize, kernels, graphs is not None)
    rows = kind(policy, prefix, sampling, uniform)

    def step() -> Tensor:
        logits = decoder(rows.sampled, rows.position)
        rows.sample(logits)
        return logits

    def runner(count: int) -> Callable[[], object]:
        """Runs steps of the present shapes, of which the first decodes the token after ``count``."""
        if graphs is None:
            return step
        assert isinstance(cache, StaticGroupCache)
        state = StepState([*rows.state, cache.slot], cache.forget)
        return graphs.step(step, state, min(limit, cache.capacity + 1) - count)

    rows.sample(policy.logits(prefix.state.detach()).repeat_interleave(group, dim=0))
    run, running = runner(1), len(uniform)
    for count in range(1, limit):
        if count % check_every == 0:
            remaining = rows.running.nonzero()[:, 0]
            if not len(remaining):
                break
            if len(remaining) <= (_COMPACT_BELOW if graphs is None else _COMPACT_GRAPH_BELOW) * running:
                running = len(remaining)
                rows.keep(remaining)
                cache.select(remaining)
                decoder.set_rows(running)
                run = runner(count)
        # The cache holds all tokens but the latest; the step stores that one.
        if cache.reserve(count):
            run = runner(count)
        run()
    return rows.result()


def _prepare(
    policy: Policy, prefix: Prefix, sampling: Sampling, dequantize: bool, kernels: bool, static: bool
) -> tuple[GroupCache, Decoder, type[SampledRows]]:
    """Where a rollout's keys and values are stored, what computes a step, and what samples its tokens.

    Args:
        policy: the policy.
        prefix: its prefill of the prompts.
        sampling: group size and length limit.
        dequantize: multiply with dequantized copies of 4-bit weights.
        kernels: use vr1's kernels, as far as there are some for this model.
        static: tensors keep their addresses from token to token.
    """
    rows = len(prefix.mask) * sampling.group_size
    end = int(prefix.next_position.max()) + sampling.max_new_tokens
    plain = StaticGroupCache if static else GroupCache
    kind = kernel_cache(prefix.state.device) if kernels else plain
    if issubclass(kind, CpuKernelCache):
        if rows <= MAX_ROWS and (network := network_of(policy, dequantize)) is not None:
            cpu_cache = kind(prefix, sampling.group_size)
            return cpu_cache, CpuDecoder(policy, network, cpu_cache, end), CpuRows
        kind = plain
    cache = kind(prefix, sampling.group_size)
    return cache, make_decoder(policy, cache, rows, dequantize, end), SampledRows
