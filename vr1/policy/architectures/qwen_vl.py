"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: rotary positions of three axes (time, row, column)."""

from typing import Any

import torch
from torch import Tensor

from vr1.policy.architectures.base import Architecture
from vr1.prompts import PromptBatch


def _rotary_positions(base: Any, prompts: PromptBatch) -> Tensor:
    positions, _ = base.model.get_rope_index(
        prompts.tokens,
        mm_token_type_ids=prompts.token_types,
        image_grid_thw=prompts.vision["image_grid_thw"],
        attention_mask=prompts.mask.long(),
    )
    return positions


class QwenVL(Architecture):
    """Qwen2-VL and Qwen2.5-VL."""

    axes = 3

    def positions(self, base: Any, prompts: PromptBatch) -> Tensor:
        """Rotary positions ``[3, B, P]``: an image spreads over rows and columns."""
        return _rotary_positions(base, prompts)


class Qwen3VL(Architecture):
    """Qwen3-VL, whose first layers get image features of their own ("deepstack").

    A feature is then wider than the hidden size: the embedding first, then what each of those layers adds.
    """

    axes = 3

    def positions(self, base: Any, prompts: PromptBatch) -> Tensor:
        """Rotary positions ``[3, B, P]``: an image spreads over rows and columns."""
        return _rotary_positions(base, prompts)

    def features(self, base: Any, prompts: PromptBatch) -> tuple[Tensor, ...]:
        """Image features of the B prompts, ``[image tokens, (1 + layers) * D]`` each."""
        output = base.get_image_features(**prompts.vision)
        lengths = [len(part) for part in output.pooler_output]
        # transformers 5.17 leaves the further features of all images in one piece, later ones divide them too.
        further = (level.split(lengths) if isinstance(level, Tensor) else level for level in output.deepstack_features)
        levels = [output.pooler_output, *further]
        return tuple(torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))

    def inputs(self, base: Any, tokens: Tensor, image: Tensor | None) -> dict[str, Any]:
        """Embeddings, and for the first layers what they add in the image tokens' places."""
        if image is None:
            return super().inputs(base, tokens, None)
        first, *further = image.split(base.get_input_embeddings().embedding_dim, dim=1)
        return {
            **super().inputs(base, tokens, first),
            "visual_pos_masks": self.image_places(base, tokens),
            "deepstack_visual_embeds": further,
        }
