"""The policy as the rest of the program sees it: features of an image, states of a row, log-probs of completions.

Shape letters: B prompts, P prompt tokens, G group size, C completion tokens, T completion tokens of all rows together,
L tokens of a row, A axes of the rotary positions, D hidden size, V vocabulary, K key and value heads, E head width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.functional import pad

from vr1.errors import UserError
from vr1.policy.architectures import architecture_of
from vr1.policy.attention import NAME, CompletionAttention, PromptAttention, Sharing
from vr1.policy.logprobs import plain_log_probs, token_log_probs
from vr1.policy.patches import as_products, in_batches, one_state_of_prompts
from vr1.prompts import PromptBatch
from vr1.types import Prefix


def joined(parts: Sequence[Prefix], rows: Sequence[Tensor]) -> Prefix:
    """One prefix of several, whose prompts are the ``rows`` (int64) of the result."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.mask.shape[1] for part in parts)
    order = torch.cat(list(rows)).argsort()

    def together(layers: Sequence[list[Tensor]]) -> list[Tensor]:
        return [
            torch.cat([pad(part, (0, 0, width - part.shape[2], 0)) for part in one])[order]
            for one in zip(*layers, strict=True)
        ]

    return Prefix(
        keys=together([part.keys for part in parts]),
        values=together([part.values for part in parts]),
        state=torch.cat([part.state for part in parts])[order],
        mask=torch.cat([pad(part.mask, (width - part.mask.shape[1], 0)) for part in parts])[order],
        following=torch.cat([part.following for part in parts])[order],
    )


# Prompts go through the model together when the longest has at most this many times the tokens of the shortest.
_MAX_LENGTH_RATIO = 1.25


class Policy(nn.Module):
    """A vision-language model, with or without adapters, behind the few calls that training needs.

    Args:
        network: a vision-language model of transformers (``...ForConditionalGeneration``), or a peft model around one.
        share_prompt: compute image and prompt once per group (True) or once per completion (False); None shares them
            where this model can.

    Raises:
        UserError: ``share_prompt`` for a model that cannot.
    """

    def __init__(self, network: nn.Module, share_prompt: bool | None = None) -> None:
        super().__init__()
        self.network: Any = network
        as_products(self.base)
        in_batches(self.base)
        self._max_length_ratio = _MAX_LENGTH_RATIO
        self.architecture = None if share_prompt is False else architecture_of(self.base.config)
        if self.architecture is not None:
            self.base.config.get_text_config()._attn_implementation = NAME
            one_state_of_prompts(self.base)
        if self.architecture is None and share_prompt is not False:
            kind = self.base.config.model_type
            if share_prompt:
                raise UserError(f"policy.share_prompt=true: the rows of a {kind} model cannot be shared; leave it out")
            rank_zero_warn(
                f"policy: the completions of a {kind} model take a row each, image and prompt included, which is"
                " slower than rows that share them; share_prompt=false chooses the same without this line"
            )

    @property
    def base(self) -> Any:
        """The transformers model, adapters (if any) in place."""
        return self.network.get_base_model() if self.has_adapters else self.network

    @property
    def shares_prompt(self) -> bool:
        """Whether image and prompt are computed once per group."""
        return self.architecture is not None

    @property
    def has_adapters(self) -> bool:
        """Whether the network is a peft model."""
        return hasattr(self.network, "peft_config")

    def set_max_length_ratio(self, ratio: float) -> None:
        """Choose which prompts go through the model together in `read`.

        Args:
            ratio: the longest prompt of a forward has at most this many times the tokens of the shortest. ``math.inf``
                makes one forward a batch, as processes require that exchange sharded weights in every forward.
        """
        self._max_length_ratio = ratio

    def can_reuse_prefix(self, sharded: bool) -> bool:
        """Whether the forward of the prompts that a rollout makes serves its first update too.

        With dropout the two forwards differ, and sharded weights are gathered during the rollout only.

        Args:
            sharded: each process holds a part of every weight.
        """
        return self.shares_prompt and not sharded and not self.drops_out

    @property
    def drops_out(self) -> bool:
        """Whether two forwards of the same in training differ."""
        return any(isinstance(layer, nn.Dropout) and layer.p > 0 for layer in self.modules())

    @property
    def forbidden_tokens(self) -> list[int]:
        """Tokens that stand for pictures: sampled, they would ask the next forward for an image that is not there."""
        names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        return sorted({token for name in names if (token := getattr(self.base.config, name, None)) is not None})

    @property
    def eos_tokens(self) -> list[int]:
        """Tokens that end an answer."""
        eos = self.base.generation_config.eos_token_id
        return list(eos) if isinstance(eos, (list, tuple)) else [eos]

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """The network as it was before its adapters were added."""
        with self.network.disable_adapter() if self.has_adapters else nullcontext():
            yield

    def embed(self, prompts: PromptBatch) -> tuple[Tensor, ...]:
        """Image features of the B prompts, one row an image token."""
        assert self.architecture is not None
        return self.architecture.features(self.base, prompts)

    def positions(self, prompts: PromptBatch) -> tuple[Tensor, Tensor]:
        """Rotary positions ``[A, B, P]`` of the prompts, and the position ``[B]`` of the token that follows each."""
        assert self.architecture is not None
        positions = self.architecture.positions(self.base, prompts)
        return positions, positions.masked_fill(~prompts.mask, -1).amax(dim=(0, 2)) + 1

    def text_positions(self, places: Tensor) -> Tensor:
        """Rotary positions ``[A, B, L]`` of text at places ``[B, L]``: the same on every axis."""
        assert self.architecture is not None
        return places.expand(self.architecture.axes, *places.shape)

    def inputs(self, tokens: Tensor, image: Tensor | None = None) -> dict[str, Any]:
        """What the language model takes for tokens ``[B, L]``, image features in the image tokens' places."""
        assert self.architecture is not None
        return self.architecture.inputs(self.base, tokens, image)

    def hidden(self, inputs: dict[str, Any], positions: Tensor, sharing: Sharing) -> Tensor:
        """Hidden states ``[B, L, D]`` of `inputs` at rotary positions ``[A, B, L]``; ``sharing`` says who sees whom.

        Of prompts (`PromptAttention`), the last token's state alone is computed to the end.
        """
        assert self.architecture is not None
        # A mask of four axes is taken as it is, where none at all would have one made.
        everything = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=positions.device)
        return self.architecture.hidden(self.base, inputs, positions, everything, sharing=sharing)

    def read(self, prompts: PromptBatch) -> Prefix:
        """Run B prompts, images and all, so that completions can go on from there."""
        image = self.embed(prompts)
        positions, following = self.positions(prompts)
        parts = []
        lengths = prompts.mask.sum(1)
        passes = _passes(lengths, self._max_length_ratio)
        for rows in passes:
            longest = int(lengths[rows].max())
            mask = prompts.mask[rows, -longest:]
            sharing = PromptAttention(mask)
            inputs = self.inputs(prompts.tokens[rows, -longest:], torch.cat([image[row] for row in rows.tolist()]))
            states = self.hidden(inputs, positions[:, rows, -longest:], sharing)
            parts.append(
                Prefix(
                    keys=sharing.keys,
                    values=sharing.values,
                    state=states[:, -1],
                    mask=mask,
                    following=following[rows],
                )
            )
        return joined(parts, passes)

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits ``[..., V]`` of hidden states ``[..., D]``."""
        return self.base.lm_head(hidden).float()

    def log_probs(
        self, prompts: PromptBatch, tokens: Tensor, mask: Tensor, temperature: float = 1.0, prefix: Prefix | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of every completion token, prompt and image computed once per group where they can be.

        Args:
            prompts: B prompts.
            tokens: ``[B, G, C]`` int64.
            mask: ``[B, G, C]`` bool, true on tokens that count: of a completion its first so many, or none.
            temperature: the temperature that the tokens were sampled with.
            prefix: what `read` made of the prompts, if it has with the weights as they are.

        Returns:
            Log-probs ``[B, G, C]`` float32 and entropies ``[B, G, C]`` float32 without gradient; 0 outside the mask.
        """
        if not self.shares_prompt:
            return plain_log_probs(self.network, prompts, tokens, mask, temperature)
        prefix = self.read(prompts) if prefix is None else prefix
        present = mask if bool(mask.any()) else _one(mask)
        row, _, place = present.nonzero(as_tuple=True)
        positions = self.text_positions((prefix.following[row] + place)[None])
        inputs = self.inputs(tokens[present][None])
        states = self.hidden(inputs, positions, CompletionAttention(prefix, present))[0]
        # The first token of a completion is predicted by the prompt's last; every other one by the token before it.
        scored = torch.where((place == 0)[:, None], prefix.state[row], states.roll(1, dims=0))
        values, entropy = token_log_probs(self.logits, scored, tokens[present], temperature)
        empty = torch.zeros(mask.shape, device=mask.device)
        return empty.masked_scatter(mask, values), empty.masked_scatter(mask, entropy)


def _passes(lengths: Tensor, max_ratio: float = _MAX_LENGTH_RATIO) -> list[Tensor]:
    """Split prompts into forwards of rows of like length, so that little of each is padding.

    Args:
        lengths: ``[B]`` int64, tokens of each row.
        max_ratio: how many times the shortest of a forward its longest may be.

    Returns:
        Row numbers, int64 in ascending order, one tensor a forward; together they hold every row once.

    Example:
        >>> [rows.tolist() for rows in _passes(torch.tensor([100, 40, 110, 45]))]
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


def _one(mask: Tensor) -> Tensor:
    """A mask with one token, for a forward that counts nothing but takes part in what all processes do together."""
    mask = mask.clone()
    mask[0, 0, 0] = True
    return mask
