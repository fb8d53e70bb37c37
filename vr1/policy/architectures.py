"""What shared rows need of a model, one small class for each kind of transformers' model classes.

Shape letters: B prompts, P prompt tokens, L tokens of a row, A axes of the rotary positions, D hidden size, F width of
an image feature.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from vr1.prompts import PromptBatch


class Architecture(ABC):
    """How one kind of model embeds images, counts positions and runs its language model.

    Stateless: ``base`` is the transformers model (``...ForConditionalGeneration``), adapters in place.

    Attributes:
        axes: A, axes of the rotary positions.
    """

    axes: int

    @abstractmethod
    def positions(self, base: Any, prompts: PromptBatch) -> Tensor:
        """Rotary positions ``[A, B, P]`` of the prompts; what stands on padding does not matter."""

    def features(self, base: Any, prompts: PromptBatch) -> tuple[Tensor, ...]:
        """Image features of the B prompts, ``[image tokens, F]`` each."""
        output = base.get_image_features(**prompts.vision).pooler_output
        flat = torch.cat(output) if isinstance(output, (tuple, list)) else output.flatten(0, -2)
        return flat.split(prompts.image_tokens)

    def inputs(self, base: Any, tokens: Tensor, image: Tensor | None) -> dict[str, Any]:
        """What the language model takes for tokens ``[B, L]`` with image features in the image tokens' places."""
        embedded = base.get_input_embeddings()(tokens)
        if image is not None:
            embedded = embedded.masked_scatter(self.image_places(base, tokens)[..., None], image.to(embedded.dtype))
        return {"inputs_embeds": embedded}

    def position_ids(self, positions: Tensor) -> Tensor:
        """Positions ``[A, B, L]`` as the language model takes them."""
        return positions

    def image_places(self, base: Any, tokens: Tensor) -> Tensor:
        """Where ``[B, L]`` the tokens stand for image features."""
        return tokens == base.config.image_token_id

    def hidden(self, base: Any, inputs: dict[str, Any], positions: Tensor, mask: Tensor, **settings: Any) -> Tensor:
        """Hidden states ``[B, L, D]`` of the language model, which keeps no cache.

        Args:
            base: the model.
            inputs: what `inputs` gave.
            positions: ``[A, B, L]`` int64.
            mask: a mask of four axes, which transformers hands on as it is.
            settings: what goes on to the attention of every layer.
        """
        output = base.model.language_model(
            **inputs, position_ids=self.position_ids(positions), attention_mask=mask, use_cache=False, **settings
        )
        return output.last_hidden_state


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


class InternVL(Architecture):
    """InternVL, around whichever language model its config names."""

    axes = 1

    def positions(self, base: Any, prompts: PromptBatch) -> Tensor:
        """Places ``[1, B, P]`` of the tokens in their prompt."""
        return (prompts.mask.long().cumsum(1) - 1).clamp(min=0)[None]

    def position_ids(self, positions: Tensor) -> Tensor:
        """Places ``[B, L]``: the language model knows no axes."""
        return positions[0]


_BY_MODEL_TYPE: dict[str, type[Architecture]] = {
    "qwen2_vl": QwenVL,
    "qwen2_5_vl": QwenVL,
    "qwen3_vl": Qwen3VL,
    "qwen3_vl_moe": Qwen3VL,
    "internvl": InternVL,
}


def architecture_of(config: Any) -> Architecture | None:
    """The architecture of a model whose completions can share a row; None where each needs a row of its own.

    Rows are shared by an attention mask. Layers that see a window or carry a state (``layer_types``) would mix the
    completions of a row whatever the mask says.
    """
    layers = set(getattr(config.get_text_config(), "layer_types", None) or ["full_attention"])
    if config.model_type not in _BY_MODEL_TYPE or layers != {"full_attention"}:
        return None
    return _BY_MODEL_TYPE[config.model_type]()
