"""What a rollout on a CPU computes by `vr1.cpu_kernels`: the step of a decoder, its cache, and the next tokens.

Shape letters: B prompts, P prompt tokens, W slots of a prompt, R rows, K key and value heads, E head width, T capacity
for own tokens, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.activations import SiLUActivation
from typing_extensions import override

from vr1.cpu_kernels import decoding
from vr1.policy.free_memory import SHARE, free_bytes
from vr1.policy.norms import RMS_NORMS
from vr1.policy.policy import Policy
from vr1.rollout.cache import GroupCache, cache_capacity
from vr1.rollout.decoder import Decoder
from vr1.rollout.linear import merge_linear
from vr1.rollout.rotation import Rotation
from vr1.rollout.rows import SampledRows
from vr1.types import Prefix

__all__ = ["MAX_ROWS", "CpuDecoder", "CpuKernelCache", "CpuRows", "network_of"]

# With more rows, torch's products and operators are as fast.
MAX_ROWS = 256


class CpuKernelCache(GroupCache):
    """A `GroupCache` in float32 for `CpuDecoder`, with the arguments of any other.

    Keys are stored in blocks of tokens, with the tokens last, so that a vector of the processor has one number of
    several keys.
    """

    def __init__(self, prefix: Prefix, group: int) -> None:
        super().__init__(prefix, group)
        self.prompt_keys[:] = map(decoding.in_blocks, self.prompt_keys)
        self.prompt_values[:] = [part.contiguous() for part in self.prompt_values]
        self._first_token = (~prefix.mask).sum(1)
        sequences, width = self._prompts * self.kv_heads * self._slots, prefix.keys[0].shape[3]
        capacity = cache_capacity(1)
        # Of each layer: keys [B * K * W, T / block, E, block] and values [B * K * W, T, E].
        blocks = capacity // decoding.BLOCK
        self._own_keys = [part.new_zeros(sequences, blocks, width, decoding.BLOCK) for part in self.prompt_keys]
        self._own_values = [part.new_zeros(sequences, capacity, width) for part in self.prompt_keys]
        self._note_rows()

    def _note_rows(self) -> None:
        """Which row is stored in each slot, ``[B * W]`` int64; -1 where none is."""
        self._row_of_slot = torch.full((self._prompts * self._slots,), -1)
        self._row_of_slot[self._slot_of_row] = torch.arange(len(self._slot_of_row))

    def add_token(self, cosine: Tensor, signed_sine: Tensor) -> tuple[list[decoding.StoredTokens], decoding.Rows]:
        """Make room for one more token in every row; returns keys and values of each layer, and where the token is.

        Args:
            cosine: ``[R, 1, E]`` of its rotary position.
            signed_sine: ``[R, 1, E]``, its first half negated.
        """
        self._length += 1
        more = cache_capacity(self._length) - self._own_values[0].shape[1]
        if more > 0:
            # One layer after another, so that only one has its old and its new memory.
            for layer in range(len(self._own_keys)):
                self._own_keys[layer] = pad(self._own_keys[layer], (0, 0, 0, 0, 0, more // decoding.BLOCK))
                self._own_values[layer] = pad(self._own_values[layer], (0, 0, 0, more))
        parts = zip(self.prompt_keys, self.prompt_values, self._own_keys, self._own_values, strict=True)
        stored = [
            decoding.StoredTokens(prompt_keys=keys, prompt_values=values, own_keys=own_keys, own_values=own_values)
            for keys, values, own_keys, own_values in parts
        ]
        return stored, decoding.Rows(
            first_token=self._first_token,
            row_of_slot=self._row_of_slot,
            slot=self._length - 1,
            cosine=cosine.contiguous(),
            sine=signed_sine.contiguous(),
        )

    @override
    def select(self, rows: Tensor) -> None:
        shape = (self._prompts, self.kv_heads, self._slots)
        before = self._slot_of_row[rows] // self._slots, self._slot_of_row[rows] % self._slots
        super().select(rows)
        self._first_token = self._first_token[before[0].unique_consecutive()]
        after = self._slot_of_row // self._slots, self._slot_of_row % self._slots
        for kind in (self._own_keys, self._own_values):
            for layer, part in enumerate(kind):
                stay = part.unflatten(0, shape)[before[0], :, before[1]]
                moved = stay.new_zeros(self._prompts, self.kv_heads, self._slots, *part.shape[1:])
                moved[after[0], :, after[1]] = stay
                kind[layer] = moved.flatten(0, 2)
        self._note_rows()


class CpuDecoder(Decoder):
    """A decoder whose step is one call of C.

    Args:
        policy: the policy.
        network: its language model, by `network_of`.
        cache: keys and values; grows by one token with every call.
        end: as for `vr1.rollout.decoder.make_decoder`.
    """

    def __init__(self, policy: Policy, network: decoding.Network, cache: CpuKernelCache, end: int | None) -> None:
        self._embed, self._rotation = policy.base.get_input_embeddings(), Rotation(policy, end)
        self._network, self._cache = network, cache

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits ``[R, V]``; see `Decoder`."""
        states = self._embed(tokens)
        return self._network.step(states.contiguous(), *self._cache.add_token(*self._rotation(states, positions)))


def network_of(policy: Policy, dequantize: bool = False) -> decoding.Network | None:
    """A copy of a policy's language model for `CpuDecoder`.

    It takes the memory of the weights once more, which for trained weights is that of their gradients: these do not
    exist during a rollout.

    Args:
        policy: with layers that `vr1.rollout.decoder.runs_layers` knows.
        dequantize: copy 4-bit weights too.

    Returns:
        None for a model that computes anything that C does not, or if there is no room for the copy.
    """
    text, attention = policy.base.model.language_model, policy.base.model.language_model.layers[0].self_attn
    copied = [part for part in (*text.layers.modules(), policy.base.lm_head) if isinstance(part, nn.Linear)]
    if sum(4 * part.in_features * part.out_features for part in copied) > SHARE * free_bytes(torch.device("cpu")):
        return None
    norm, head = _norm(text.norm), _product([policy.base.lm_head], False)
    if norm is None or head is None:
        return None
    layers: list[decoding.LayerWeights] = []
    for layer in text.layers:
        if (own := _layer(layer, dequantize)) is None:
            return None
        layers.append(own)
    config = policy.base.config.get_text_config()
    return decoding.Network(
        layers, norm, head, config.num_attention_heads, config.num_key_value_heads, attention.head_dim
    )


def _layer(layer: Any, dequantize: bool) -> decoding.LayerWeights | None:
    attention, mlp = layer.self_attn, layer.mlp
    if not isinstance(mlp.act_fn, nn.SiLU | SiLUActivation):
        return None
    layers = {
        "qkv": [attention.q_proj, attention.k_proj, attention.v_proj],
        "output": [attention.o_proj],
        "gate": [mlp.gate_proj],
        "up": [mlp.up_proj],
        "down": [mlp.down_proj],
    }
    norms = {"attention_norm": layer.input_layernorm, "mlp_norm": layer.post_attention_layernorm}
    # Qwen3 normalizes queries and keys; the other supported layers do not.
    if hasattr(attention, "q_norm"):
        norms |= {"query_norm": attention.q_norm, "key_norm": attention.k_norm}
    parts: dict[str, Any] = {name: _product(own, dequantize) for name, own in layers.items()}
    parts |= {name: _norm(own) for name, own in norms.items()}
    if None in parts.values():
        return None
    return decoding.LayerWeights(**parts, scaling=attention.scaling)


def _product(layers: Sequence[nn.Module], dequantize: bool) -> decoding.Product | None:
    merged = merge_linear(layers, dequantize)
    return None if merged is None else decoding.Product(*merged)


def _norm(norm: Any) -> decoding.Norm | None:
    if type(norm).__name__ not in RMS_NORMS or norm.weight.dtype != torch.float32:
        return None
    return decoding.Norm(norm.weight.detach(), norm.variance_epsilon)


class CpuRows(SampledRows):
    """Rows whose next token is sampled by one call of C, except where the largest logits have to be found."""

    @override
    def sample(self, logits: Tensor) -> None:
        if self._sampling.temperature == 0 or self._sampling.top_p < 1:
            super().sample(logits)
            return
        decoding.sample(
            decoding.Sampled(
                forbidden=self._forbidden,
                ends=self._ends,
                uniform=self._uniform,
                count=self._count,
                tokens=self._tokens,
                lengths=self._lengths,
                log_probs=self._log_probs,
                latest=self.sampled,
                position=self.position,
                running=self.running,
                temperature=self._sampling.temperature,
            ),
            logits,
        )
