"""Gradient checkpointing of as few layers as the free memory requires, decided anew for each forward.

Shape letters: T tokens of a forward without padding, D hidden size, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from vr1.policy.free_memory import SHARE, free_bytes
from vr1.policy.logprobs import CHUNK
from vr1.policy.products import autocast_dtype

__all__ = ["Recomputation", "room_for_activations"]

_GIB = 2**30
# The logits of a chunk and what is computed from them, in float32.
_LOGIT_COPIES = 5


class Recomputation:
    """Chooses for each forward of a training which layers of the language model recompute their activations.

    A layer with gradient checkpointing stores its input alone, and backward runs it once more: a third more time for
    all layers. Here a layer does so only if there is no memory for its activations. How much a layer stores for each
    token is measured: in the first forward a single one does, from then on as many as fit. Every layer computes the
    same either way, so loss and gradients do not depend on the choice.

    Layers store their activations from the last but one on downwards. The last one comes last, since it computes less
    of prompts and would be no measure. Backward recomputes one layer at a time beside what is still stored; room for
    one more layer is kept for that.

    Args:
        layers: of the language model in their order, `transformers.modeling_layers.GradientCheckpointingLayer`, with
            gradient checkpointing enabled.

    Attributes:
        layers: how many there are.
        recomputed: how many of them recomputed their activations in the latest forward.
        bytes_per_token: the most that a layer has stored for each of T tokens; None before the first forward.

    Example:
        >>> from vr1.policy import PolicySource
        >>> policy = PolicySource(gradient_checkpointing=True).load()
        >>> choice = Recomputation(policy.base.model.language_model.layers)
        >>> with choice.choose(room=1.0, tokens=100):
        ...     sum(layer.gradient_checkpointing for layer in policy.base.model.language_model.layers)
        4
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers: list[Any] = [*layers[-2::-1], layers[-1]]
        self.bytes_per_token: float | None = None
        self.layers = self.recomputed = len(layers)
        self._said = False

    @contextmanager
    def choose(self, room: float, tokens: int) -> Iterator[None]:
        """A context for a forward, in which some layers store their activations.

        Args:
            room: bytes for the activations of layers (`room_for_activations`).
            tokens: T, of prompts and completions.
        """
        storing = self._layers[: self._fitting(room, tokens)]
        self.recomputed = self.layers - len(storing)
        counters = [_StoredBytes(layer) for layer in storing]
        try:
            for layer in storing:
                layer.gradient_checkpointing = False
            yield
        finally:
            for layer in storing:
                layer.gradient_checkpointing = True
            for counter in counters:
                counter.remove()
        if counters:
            found = max(counter.total for counter in counters) / tokens
            # Attention pads completions, so that a batch of unequal ones takes more for each token.
            self.bytes_per_token = max(found, self.bytes_per_token or 0.0)

    def _fitting(self, room: float, tokens: int) -> int:
        """How many layers can store their activations."""
        if self.bytes_per_token is None:
            return 1 if room > 0 else 0
        one = max(1.0, self.bytes_per_token * tokens)
        fitting = min(self.layers, max(0, int(room / one) - 1))
        if not self._said:
            self._said = True
            rank_zero_info(
                f"policy.gradient_checkpointing auto: {self.layers - fitting} of {self.layers} layers"
                f" recompute their activations ({one / _GIB:.2f} GiB each for {tokens:,} tokens, {room / _GIB:.2f} GiB"
                " free for them); decided anew for each batch"
            )
        return fitting


class _StoredBytes:
    """Counts what a layer stores for backward, without its weights and their 16-bit copies by autocast.

    Attributes:
        total: bytes, of all calls so far.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.total = 0
        weights = (*layer.parameters(), *layer.buffers())
        self._weights = {shape for weight in weights for shape in (weight.shape, weight.shape[::-1])}
        self._seen: set[int] = set()
        self._hooks: saved_tensors_hooks | None = None
        self._handles = [
            layer.register_forward_pre_hook(self._begin),
            layer.register_forward_hook(self._end),
        ]

    def remove(self) -> None:
        """Stop counting."""
        for handle in self._handles:
            handle.remove()
        # Where a layer fails, its hook after the forward is not called.
        self._end()

    def _begin(self, *_: Any) -> None:
        self._hooks = saved_tensors_hooks(self._count, _as_it_is)
        self._hooks.__enter__()

    def _end(self, *_: Any) -> None:
        if self._hooks is not None:
            self._hooks.__exit__(None, None, None)
            self._hooks = None

    def _count(self, stored: Tensor) -> Tensor:
        # Stored tensors live until backward, so that no two memories have the same identity.
        if stored.shape not in self._weights and (memory := _identity(stored)) not in self._seen:
            self._seen.add(memory)
            self.total += stored.untyped_storage().nbytes()
        # With its graph, an output would hold the graph that holds it, and a forward without backward never be freed.
        return stored.detach()


def _identity(tensor: Tensor) -> int:
    """The same number for tensors that share their memory; also of tensors without content, which have no address."""
    return int(tensor.untyped_storage()._cdata)


def _as_it_is(stored: Tensor) -> Tensor:
    return stored


def room_for_activations(network: Any, tokens: int, device: torch.device) -> float:
    """Bytes for activations of layers beside what else a forward and its backward allocate in a language model.

    That is: the input of every layer, logits and what is computed from them, gradients that do not exist yet, and the
    16-bit copies that autocast makes of float32 weights.

    Args:
        network: the model of transformers, with its adapters in place.
        tokens: T.
        device: where it computes.
    """
    config, weights = network.config.get_text_config(), list(network.parameters())
    inputs = config.num_hidden_layers * tokens * config.hidden_size * network.dtype.itemsize
    logits = _LOGIT_COPIES * min(tokens, CHUNK) * config.vocab_size * torch.float32.itemsize
    gradients = sum(
        weight.numel() * weight.element_size() for weight in weights if weight.requires_grad and weight.grad is None
    )
    copies = 0
    if (cast := autocast_dtype(device.type)) is not None:
        copies = sum(cast.itemsize * weight.numel() for weight in weights if weight.dtype == torch.float32)
    return SHARE * free_bytes(device) - inputs - logits - gradients - copies
