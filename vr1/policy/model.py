"""The policy as the rest of the program sees it: features of an image, states of a row, log-probs of completions.

Shape letters: B prompts, P prompt tokens, G group size, C completion tokens, L tokens of a packed row, T scored
tokens, D hidden size, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vr1.policy.packing import PackedRows, pack
from vr1.prompts import PromptBatch

# Logits of this many tokens exist at a time: 1,024 rows of a 152K vocabulary are 0.6 GB in float32.
_CHUNK = 1024
# Rows go through the model together when the longest has at most this many times the tokens of the shortest.
_LENGTH_SPREAD = 1.25


class Policy(nn.Module):
    """A vision-language model, with or without adapters, behind the few calls that training needs.

    Args:
        network: a transformers Qwen2.5-VL (``...ForConditionalGeneration``), or a peft model around one.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    @property
    def base(self) -> Any:
        """The transformers model, adapters (if any) in place."""
        return self.network.get_base_model() if self.has_adapters else self.network

    @property
    def has_adapters(self) -> bool:
        """Whether the network is a peft model."""
        return hasattr(self.network, "peft_config")

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
        """Image features of the B prompts, ``[image tokens, D]`` each."""
        return tuple(self.base.get_image_features(**prompts.vision).pooler_output)

    def positions(self, prompts: PromptBatch) -> tuple[Tensor, Tensor]:
        """Rotary positions ``[3, B, P]`` of the prompts, and the position ``[B]`` of the token that follows each."""
        positions, _ = self.base.model.get_rope_index(
            prompts.tokens,
            mm_token_type_ids=prompts.token_types,
            image_grid_thw=prompts.vision["image_grid_thw"],
            attention_mask=prompts.mask.long(),
        )
        following = positions.masked_fill(~prompts.mask, -1).amax(dim=(0, 2)) + 1
        return positions, following

    def inputs(self, tokens: Tensor, image: Tensor) -> Tensor:
        """Embeddings ``[B, L, D]`` of tokens with the image features in the image tokens' places."""
        embedded = self.base.get_input_embeddings()(tokens)
        places = (tokens == self.base.config.image_token_id)[..., None]
        return embedded.masked_scatter(places, image.to(embedded.dtype))

    def hidden(self, inputs: Tensor, positions: Tensor, attention: Tensor | None, **cache: Any) -> Any:
        """Run the language model on embeddings; returns transformers' output (``last_hidden_state``, cache)."""
        mask = {"full_attention": attention} if attention is not None and attention.dim() == 4 else attention
        return self.base.model.language_model(
            inputs_embeds=inputs, position_ids=positions, attention_mask=mask, **{"use_cache": False, **cache}
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits ``[..., V]`` of hidden states ``[..., D]``."""
        return self.base.lm_head(hidden).float()

    def log_probs(
        self, prompts: PromptBatch, tokens: Tensor, mask: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of every completion token, prompt and image computed once per group.

        Args:
            prompts: B prompts.
            tokens: ``[B, G, C]`` int64.
            mask: ``[B, G, C]`` bool, true on tokens that count.
            temperature: the temperature that the tokens were sampled with.

        Returns:
            Log-probs ``[B, G, C]`` float32 and entropies ``[B, G, C]`` float32 without gradient; 0 outside the mask.
        """
        image = self.embed(prompts)
        positions, following = self.positions(prompts)
        passes = _passes(prompts.mask.sum(1) + mask.sum((1, 2)))
        log_probs, entropies = [], []
        for chosen in passes:
            rows = pack(prompts.tokens[chosen], prompts.mask[chosen], tokens[chosen], mask[chosen])
            row_positions = _row_positions(positions[:, chosen], prompts.mask[chosen], following[chosen], rows)
            inputs = self.inputs(rows.tokens, torch.cat([image[row] for row in chosen.tolist()]))
            states = self.hidden(inputs, row_positions, rows.attention()).last_hidden_state
            scored = states[rows.rows, rows.columns]
            values, entropy = _token_log_probs(self.logits, scored, tokens[chosen][mask[chosen]], temperature)
            empty = torch.zeros(mask[chosen].shape, device=mask.device)
            log_probs.append(empty.masked_scatter(mask[chosen], values))
            entropies.append(empty.masked_scatter(mask[chosen], entropy))
        restore = torch.cat(passes).argsort()
        return torch.cat(log_probs)[restore], torch.cat(entropies)[restore]


def _passes(lengths: Tensor) -> list[Tensor]:
    """Split rows into forwards of rows of like length, so that little of each is padding.

    Args:
        lengths: ``[B]`` int64, tokens of each row.

    Returns:
        Row numbers, int64, one tensor a forward; together they hold every row once.

    Example:
        >>> [rows.tolist() for rows in _passes(torch.tensor([100, 40, 110, 45]))]
        [[1, 3], [0, 2]]
    """
    ordered = lengths.cpu().sort(stable=True)
    groups: list[list[int]] = []
    shortest = 0
    for length, row in zip(ordered.values.tolist(), ordered.indices.tolist(), strict=True):
        if not groups or length > _LENGTH_SPREAD * shortest:
            groups.append([])
            shortest = length
        groups[-1].append(row)
    return [torch.tensor(group, device=lengths.device) for group in groups]


def _row_positions(positions: Tensor, prompt_mask: Tensor, following: Tensor, rows: PackedRows) -> Tensor:
    """Rotary positions ``[3, B, L]``: the prompt's own, then each completion as if it followed the prompt alone."""
    # Left-aligned prompt positions, so that a token's offset in the prompt finds its place.
    order = torch.sort((~prompt_mask).long(), dim=1, stable=True).indices
    aligned = positions.gather(2, order.expand_as(positions))
    in_prompt = rows.segments == 0
    prompt_part = aligned.gather(2, (rows.offsets * in_prompt).expand(3, -1, -1))
    return torch.where(in_prompt, prompt_part, following[:, None] + rows.offsets)


def _token_log_probs(head: Any, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies ``[T]`` of ``targets`` under ``head(hidden)``, chunk by chunk: no more logits exist."""

    def chunk(states: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = torch.log_softmax(head(states) / temperature, dim=-1)
        entropy = -(log_probs.detach().exp() * log_probs.detach()).sum(-1)
        return log_probs.gather(-1, target[:, None])[:, 0], entropy

    parts = [
        checkpoint(chunk, states, target, use_reentrant=False)
        for states, target in zip(hidden.split(_CHUNK), targets.split(_CHUNK), strict=True)
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
