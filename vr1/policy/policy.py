"""The policy: image features, prefill of prompts, hidden states, and log-probs of completions.

Shape letters: B prompts, P prompt tokens, G group size, C completion tokens, T completion tokens of all rows together,
L tokens of a row, A axes of the rotary positions, D hidden size, F width of an image feature, V vocabulary, K key and
value heads, E head width.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from vr1.errors import UserError
from vr1.policy.architectures import architecture_of
from vr1.policy.attention import CompletionAttention, PromptAttention, Sharing
from vr1.policy.dropout import drops_values
from vr1.policy.logprobs import token_log_probs, unshared_log_probs
from vr1.policy.patches import apply_patches, transformer_blocks
from vr1.policy.recomputation import Recomputation, room_for_activations
from vr1.prompts import PromptBatch
from vr1.types import Prefix

__all__ = ["Policy", "RolloutForm", "join_prefixes"]

# What rollouts multiply with where the weights are stored in 4 bits.
RolloutForm = Literal["auto", "quantized", "dequantized"]

# Prompts go through the model together when the longest has at most this many times the tokens of the shortest.
_MAX_LENGTH_RATIO = 1.25
# Names of the tokens of images, videos and sounds in the configs of transformers.
_MEDIA_TOKENS = (
    *("image_token_id", "video_token_id", "audio_token_id", "vision_start_token_id", "vision_end_token_id"),
    *(f"{medium}_{end}_token_id" for medium in ("image", "video") for end in ("start", "end")),
)


class Policy(nn.Module):
    """A vision-language model, with or without adapters, behind the few calls that training needs.

    Args:
        network: a vision-language model of transformers (``...ForConditionalGeneration``), or a peft model around one;
            patched in place (`vr1.policy.patches`).
        share_prompt: compute image and prompt once per group (True) or once per completion (False); None shares them
            if this model can.
        rollout_weights: what rollouts multiply with where weights are stored in 4 bits
            (`vr1.policy.loading.PolicySource`).
        recompute_as_needed: of the layers of the language model, which have gradient checkpointing enabled, recompute
            those alone whose activations do not fit in the memory (`vr1.policy.recomputation`).

    Raises:
        UserError: ``share_prompt`` for a model that cannot, or ``recompute_as_needed`` for a policy that does not share
            prompts or trains its vision tower.
    """

    def __init__(
        self,
        network: nn.Module,
        share_prompt: bool | None = None,
        rollout_weights: RolloutForm = "auto",
        recompute_as_needed: bool = False,
    ) -> None:
        super().__init__()
        self.network: Any = network
        self.rollout_weights = rollout_weights
        self.architecture = None if share_prompt is False else architecture_of(self.base.config)
        self._max_length_ratio = _MAX_LENGTH_RATIO
        apply_patches(self.base, share_prompts=self.architecture is not None)
        self.recomputation: Recomputation | None = None
        if self.architecture is None and share_prompt is not False:
            kind = self.base.config.model_type
            if share_prompt:
                raise UserError(f"policy.share_prompt=true: a {kind} model cannot share prompts; leave it out")
            rank_zero_warn(
                f"policy: a {kind} model computes image and prompt once per completion, which is slower than sharing"
                " them; policy.share_prompt=false does the same without this warning"
            )
        if recompute_as_needed:
            if not self.has_fixed_vision:
                raise UserError(
                    "policy.gradient_checkpointing=auto: it counts the memory of models whose completions share their"
                    " prompt and whose vision tower is not trained; set policy.freeze_vision true or policy.lora, or"
                    " gradient_checkpointing true"
                )
            self.recomputation = Recomputation(self.base.model.language_model.layers)

    @property
    def base(self) -> Any:
        """The transformers model, with its adapters in place."""
        return self.network.get_base_model() if self.has_adapters else self.network

    @property
    def shares_prompt(self) -> bool:
        """Whether image and prompt are computed once per group."""
        return self.architecture is not None

    @property
    def has_adapters(self) -> bool:
        """Whether the network is a peft model."""
        return hasattr(self.network, "peft_config")

    @property
    def has_dropout(self) -> bool:
        """Whether two forwards of the same inputs differ in training mode."""
        return drops_values(self, self.base.config.to_dict())

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks of vision tower and language model, the units of sharding."""
        return transformer_blocks(self.base)

    @property
    def forbidden_tokens(self) -> list[int]:
        """Tokens that stand for images: if one were sampled, the next forward would require an image for it."""
        return sorted({token for name in _MEDIA_TOKENS if (token := getattr(self.base.config, name, None)) is not None})

    @property
    def eos_tokens(self) -> list[int]:
        """Tokens that end an answer."""
        eos = self.base.generation_config.eos_token_id
        return list(eos) if isinstance(eos, (list, tuple)) else [eos]

    def set_max_length_ratio(self, ratio: float) -> None:
        """Choose which prompts go through the model together in `prefill`.

        Args:
            ratio: the longest prompt of a forward has at most this many times the tokens of the shortest. ``math.inf``
                makes one forward a batch, as processes require that exchange sharded weights in every forward.
        """
        self._max_length_ratio = ratio

    def no_op(self, nothing: None) -> None:
        """Compute nothing; a strategy that requires a first forward of the root module registers and calls this."""

    def can_reuse_prefix(self, sharded: bool) -> bool:
        """Whether the prefill of a rollout can serve the forward of its first update too, with its graph.

        With dropout the two forwards differ, and sharded weights are gathered during the rollout only.

        Args:
            sharded: each process holds a part of every weight.
        """
        return self.shares_prompt and not sharded and not self.has_dropout

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """A context in which the network computes without its adapters."""
        with self.network.disable_adapter() if self.has_adapters else nullcontext():
            yield

    @property
    def has_fixed_vision(self) -> bool:
        """Whether image features are the same in every forward of a training, and those of a reference too.

        That is so if nothing before the language model is trained, and no dropout is there.
        """
        if not self.shares_prompt:
            return False
        inner = self.base.model
        parts = nn.ModuleList(part for name, part in inner.named_children() if name != "language_model")
        trained = any(weight.requires_grad for weight in (*parts.parameters(), *inner.parameters(recurse=False)))
        return not trained and not drops_values(parts, self.base.config.vision_config.to_dict())

    @torch.no_grad()
    def with_image_features(self, prompts: PromptBatch) -> PromptBatch:
        """The same prompts with their image features, if these are fixed (`has_fixed_vision`).

        Then all forwards of them, by this policy and by its reference, use these and do not run the vision tower.
        """
        if not self.has_fixed_vision or prompts.image_features:
            return prompts
        return replace(prompts, image_features=self.image_features(prompts))

    def image_features(self, prompts: PromptBatch) -> tuple[Tensor, ...]:
        """Image features of the B prompts, ``[image tokens, F]`` each; those that the prompts carry, if they do."""
        assert self.architecture is not None
        return prompts.image_features or self.architecture.image_features(self.base, prompts)

    def positions(self, prompts: PromptBatch) -> tuple[Tensor, Tensor]:
        """Rotary positions ``[A, B, P]`` of the prompts, and the position ``[B]`` of the token after each prompt."""
        assert self.architecture is not None
        positions = self.architecture.positions(self.base, prompts)
        return positions, positions.masked_fill(~prompts.mask, -1).amax(dim=(0, 2)) + 1

    def text_positions(self, positions: Tensor) -> Tensor:
        """Rotary positions ``[A, B, L]`` of text at positions ``[B, L]``: the same on every axis."""
        assert self.architecture is not None
        return positions.expand(self.architecture.axes, *positions.shape)

    def inputs(self, tokens: Tensor, image: Tensor | None = None) -> dict[str, Any]:
        """Keyword arguments of the language model for tokens ``[B, L]``.

        Args:
            tokens: ``[B, L]`` int64.
            image: ``[image tokens, F]``, features of the image tokens in ``tokens``, in their order.
        """
        assert self.architecture is not None
        return self.architecture.inputs(self.base, tokens, image)

    def hidden_states(self, inputs: dict[str, Any], positions: Tensor, sharing: Sharing) -> Tensor:
        """Last hidden states of the language model.

        Of prompts (`PromptAttention`), only the last token's state is computed to the end.

        Args:
            inputs: as returned by `inputs`.
            positions: ``[A, B, L]`` int64 rotary positions.
            sharing: the attention, which decides which tokens see which.

        Returns:
            ``[B, L, D]``.
        """
        assert self.architecture is not None
        # transformers passes a mask of four axes on unchanged; without one it would build its own.
        no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=positions.device)
        return self.architecture.hidden_states(self.base, inputs, positions, no_mask, sharing=sharing)

    def prefill(self, prompts: PromptBatch) -> Prefix:
        """Run B prompts with their images, so that completions can continue from them.

        Prompts of similar length go through the model together (`set_max_length_ratio`).
        """
        image = self.image_features(prompts)
        positions, next_position = self.positions(prompts)
        parts = []
        lengths = prompts.mask.sum(1)
        groups = _group_by_length(lengths, self._max_length_ratio)
        for rows in groups:
            longest = int(lengths[rows].max())
            mask = prompts.mask[rows, -longest:]
            sharing = PromptAttention(mask)
            inputs = self.inputs(prompts.tokens[rows, -longest:], torch.cat([image[row] for row in rows.tolist()]))
            states = self.hidden_states(inputs, positions[:, rows, -longest:], sharing)
            parts.append(
                Prefix(
                    keys=sharing.keys,
                    values=sharing.values,
                    state=states[:, -1],
                    mask=mask,
                    next_position=next_position[rows],
                )
            )
        return join_prefixes(parts, groups)

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits ``[..., V]`` of hidden states ``[..., D]``."""
        assert self.architecture is not None
        return self.architecture.logits(self.base, hidden)

    def log_probs(
        self,
        prompts: PromptBatch,
        tokens: Tensor,
        mask: Tensor,
        temperature: float = 1.0,
        prefix: Prefix | None = None,
        entropy_gradient: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of every completion token; image and prompt are computed once per group if they can be.

        Args:
            prompts: B prompts.
            tokens: ``[B, G, C]`` int64.
            mask: ``[B, G, C]`` bool, true on tokens that count: the first tokens of a completion, or none of them.
            temperature: the temperature that the tokens were sampled with.
            prefix: the result of `prefill` with the present weights; None computes it.
            entropy_gradient: whether the entropies have a gradient, for a loss with an entropy bonus.

        Returns:
            Log-probs ``[B, G, C]`` float32 and entropies ``[B, G, C]`` float32; 0 outside the mask.
        """
        if not self.shares_prompt:
            return unshared_log_probs(self.network, prompts, tokens, mask, temperature, entropy_gradient)
        with self._recomputation_of(prompts, mask, prefix):
            return self._shared_log_probs(prompts, tokens, mask, temperature, prefix, entropy_gradient)

    def _recomputation_of(
        self, prompts: PromptBatch, mask: Tensor, prefix: Prefix | None
    ) -> AbstractContextManager[None]:
        """A context in which layers recompute their activations as far as a forward requires (`log_probs`)."""
        if self.recomputation is None or not (self.training and torch.is_grad_enabled()):
            return nullcontext()
        tokens = max(1, int(mask[..., 1:].sum())) + (int(prompts.mask.sum()) if prefix is None else 0)
        return self.recomputation.choose(room_for_activations(self.base, tokens, mask.device), tokens)

    def _shared_log_probs(
        self,
        prompts: PromptBatch,
        tokens: Tensor,
        mask: Tensor,
        temperature: float,
        prefix: Prefix | None,
        entropy_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        """`log_probs` of a policy that shares prompts."""
        prefix = self.prefill(prompts) if prefix is None else prefix
        counted = mask if bool(mask.any()) else _one_token(mask)
        read = _tokens_read(counted)
        prompt, _, place = read.nonzero(as_tuple=True)
        positions = self.text_positions((prefix.next_position[prompt] + place)[None])
        inputs = self.inputs(tokens[read][None])
        states = self.hidden_states(inputs, positions, CompletionAttention(prefix, read))[0]
        # The prompt's last token predicts the first of a completion; each other token is predicted by the one before.
        prompt, _, place = counted.nonzero(as_tuple=True)
        before = (read.flatten().cumsum(0) - 1).view(read.shape).roll(1, dims=-1)[counted].clamp(min=0)
        predicting = torch.where((place == 0)[:, None], prefix.state[prompt], states.index_select(0, before))
        fixed_head = not any(weight.requires_grad for weight in self.base.lm_head.parameters())
        values, entropy = token_log_probs(
            self.logits, predicting, tokens[counted], temperature, entropy_gradient, fixed_head
        )
        empty = torch.zeros(mask.shape, device=mask.device)
        return empty.masked_scatter(mask, values), empty.masked_scatter(mask, entropy)


def join_prefixes(parts: Sequence[Prefix], rows: Sequence[Tensor]) -> Prefix:
    """Join prefixes of several forwards.

    Args:
        parts: the prefixes, padded to one length in the result.
        rows: for each of ``parts`` the int64 indices of its prompts in the result.
    """
    if len(parts) == 1:
        return parts[0]
    width = max(part.mask.shape[1] for part in parts)
    order = torch.cat(list(rows)).argsort()

    def join_layers(layers: Sequence[list[Tensor]]) -> list[Tensor]:
        return [
            torch.cat([F.pad(part, (0, 0, width - part.shape[2], 0)) for part in layer])[order]
            for layer in zip(*layers, strict=True)
        ]

    return Prefix(
        keys=join_layers([part.keys for part in parts]),
        values=join_layers([part.values for part in parts]),
        state=torch.cat([part.state for part in parts])[order],
        mask=torch.cat([F.pad(part.mask, (width - part.mask.shape[1], 0)) for part in parts])[order],
        next_position=torch.cat([part.next_position for part in parts])[order],
    )


def _group_by_length(lengths: Tensor, max_ratio: float = _MAX_LENGTH_RATIO) -> list[Tensor]:
    """Split prompts into forwards of prompts of similar length, so that little of each forward is padding.

    Args:
        lengths: ``[B]`` int64, tokens of each prompt.
        max_ratio: the longest prompt of a forward has at most this many times the tokens of the shortest.

    Returns:
        Ascending int64 indices of prompts, one tensor a forward; together they hold every prompt once.

    Example:
        >>> [rows.tolist() for rows in _group_by_length(torch.tensor([100, 40, 110, 45]))]
        [[1, 3], [0, 2]]
    """
    ordered = lengths.cpu().sort(stable=True)
    groups: list[list[int]] = []
    shortest = 0
    for length, row in zip(ordered.values.tolist(), ordered.indices.tolist(), strict=True):
        if not groups or length > max_ratio * shortest:
            groups.append([])
            shortest = length
        groups[-1].append(row)
    return [torch.tensor(sorted(group), device=lengths.device) for group in groups]


def _tokens_read(mask: Tensor) -> Tensor:
    """Of the tokens that count, those that a forward reads: the last of a completion predicts none of them.

    Args:
        mask: ``[B, G, C]`` bool, at least one true.

    Returns:
        ``[B, G, C]`` bool, at least one true.

    Example:
        >>> _tokens_read(torch.tensor([[[True, True, True], [True, False, False]]])).int().tolist()
        [[[1, 1, 0], [0, 0, 0]]]
    """
    read = F.pad(mask[..., 1:], (0, 1))
    return read if bool(read.any()) else _one_token(read)


def _one_token(mask: Tensor) -> Tensor:
    """A mask with one token, for a forward that counts nothing but must run, since all processes run it together."""
    mask = mask.clone()
    mask[0, 0, 0] = True
    return mask
