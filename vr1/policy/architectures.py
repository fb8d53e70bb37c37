"""How each kind of model embeds images, counts positions and runs its language model, so that rows can share a prompt.

One small class for each kind of transformers' model classes; `architecture_of` chooses it by the config.


Shape letters: B prompts, P prompt tokens, L tokens of a row, A axes of the rotary positions, D hidden size, F width of
an image feature, V vocabulary.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from vr1.prompts import PromptBatch


class Architecture(ABC):
    """How one kind of model embeds images, counts positions and runs its language model.

    Stateless: ``base`` is the transformers model (``...ForConditionalGeneration``), with its adapters in place.

    Attributes:
        axes: A, axes of the rotary positions.
        sees_windows: layers of the language model may see a window of tokens.
    """

    axes: int
    sees_windows: bool = False

    @abstractmethod
    def positions(self, base: Any, prompts: PromptBatch) -> Tensor:
        """Rotary positions ``[A, B, P]`` int64 of the prompts; those of padding are never used."""

    def image_features(self, base: Any, prompts: PromptBatch) -> tuple[Tensor, ...]:
        """Image features of the B prompts, ``[image tokens, F]`` each."""
        output = base.get_image_features(**prompts.vision).pooler_output
        flat = torch.cat(output) if isinstance(output, (tuple, list)) else output.flatten(0, -2)
        return flat.split(prompts.image_tokens)

    def inputs(self, base: Any, tokens: Tensor, image: Tensor | None) -> dict[str, Any]:
        """Keyword arguments of the language model for some tokens.

        Args:
            base: the model.
            tokens: ``[B, L]`` int64.
            image: ``[image tokens, F]``, features that replace the embeddings of the image tokens; None without any.
        """
        embedded = base.get_input_embeddings()(tokens)
        if image is not None:
            embedded = embedded.masked_scatter(self.image_mask(base, tokens)[..., None], image.to(embedded.dtype))
        return {"inputs_embeds": embedded}

    def position_ids(self, positions: Tensor) -> Tensor:
        """The argument ``position_ids`` of the language model for positions ``[A, B, L]``."""
        return positions

    def image_mask(self, base: Any, tokens: Tensor) -> Tensor:
        """``[B, L]`` bool, true on image tokens."""
        return tokens == base.config.image_token_id

    def hidden_states(
        self, base: Any, inputs: dict[str, Any], positions: Tensor, mask: Tensor, **settings: Any
    ) -> Tensor:
        """Last hidden states ``[B, L, D]`` of the language model, without a cache.

        Args:
            base: the model.
            inputs: as returned by `inputs`.
            positions: ``[A, B, L]`` int64.
            mask: a mask of four axes, which transformers passes on unchanged.
            settings: passed on to the attention of every layer.
        """
        output = base.model.language_model(
            **inputs, position_ids=self.position_ids(positions), attention_mask=mask, use_cache=False, **settings
        )
        return output.last_hidden_state

    def logits(self, base: Any, hidden: Tensor) -> Tensor:
        """Float32 logits ``[..., V]`` of hidden states ``[..., D]``."""
        return base.lm_head(hidden).float()


def _rotary_positions(base: Any, prompts: PromptBatch) -> Tensor:
    positions, _ = base.model.get_rope_index(
        prompts.tokens,
        mm_token_type_ids=prompts.token_types,
        image_grid_thw=prompts.vision["image_grid_thw"],
        attention_mask=prompts.mask.long(),
    )
    return positions


class QwenVL(Architecture):
    """Qwen2-VL and Qwen2.5-VL, and GLM-V, which counts positions alike."""

    axes = 3

    def positions(self, base: Any, prompts: PromptBatch) -> Tensor:
        """Rotary positions ``[3, B, P]``: time, and an image token's row and column."""
        return _rotary_positions(base, prompts)


class Qwen3VL(Architecture):
    """Qwen3-VL, whose first layers add image features of their own ("deepstack").

    A feature is therefore wider than the hidden size: the embedding first, then the features of each of these layers.
    """

    axes = 3

    def positions(self, base: Any, prompts: PromptBatch) -> Tensor:
        """Rotary positions ``[3, B, P]``: time, and an image token's row and column."""
        return _rotary_positions(base, prompts)

    def image_features(self, base: Any, prompts: PromptBatch) -> tuple[Tensor, ...]:
        """Image features of the B prompts, ``[image tokens, (1 + layers) * D]`` each."""
        output = base.get_image_features(**prompts.vision)
        lengths = [len(part) for part in output.pooler_output]
        # transformers 5.17 returns the deepstack features of all images in one tensor, later versions one per image.
        deepstack = (
            level.split(lengths) if isinstance(level, Tensor) else level for level in output.deepstack_features
        )
        levels = [output.pooler_output, *deepstack]
        images = [torch.cat(parts, dim=1) for parts in zip(*levels, strict=True)]
        # A prompt may have several images.
        return torch.cat(images).split(prompts.image_tokens)

    def inputs(self, base: Any, tokens: Tensor, image: Tensor | None) -> dict[str, Any]:
        """Embeddings, and the features that the first layers add at the image tokens."""
        if image is None:
            return super().inputs(base, tokens, None)
        first, *deepstack = image.split(base.get_input_embeddings().embedding_dim, dim=1)
        return {
            **super().inputs(base, tokens, first),
            "visual_pos_masks": self.image_mask(base, tokens),
            "deepstack_visual_embeds": deepstack,
        }


class InternVL(Architecture):
    """InternVL, around whichever language model its config names."""

    axes = 1

    def positions(self, base: Any, prompts: PromptBatch) -> Tensor:
        """Index ``[1, B, P]`` of each token in its prompt."""
        return (prompts.mask.long().cumsum(1) - 1).clamp(min=0)[None]

    def position_ids(self, positions: Tensor) -> Tensor:
        """Positions ``[B, L]``: the language model has one axis and takes none."""
        return positions[0]


class GriffonG(InternVL):
    """Griffon-G: one axis of positions as InternVL's, windows in every other layer, and capped logits."""

    sees_windows = True

    def logits(self, base: Any, hidden: Tensor) -> Tensor:
        """Float32 logits ``[..., V]``, capped as the model's own forward does."""
        return base.logits(hidden).float()


_BY_MODEL_TYPE: dict[str, type[Architecture]] = {
    "qwen2_vl": QwenVL,
    "qwen2_5_vl": QwenVL,
    "qwen3_vl": Qwen3VL,
    "qwen3_vl_moe": Qwen3VL,
    "internvl": InternVL,
    "glm4v": QwenVL,
    "glm4v_moe": QwenVL,
    "glm46v": QwenVL,
    "griffon_g": GriffonG,
}


def architecture_of(config: Any) -> Architecture | None:
    """The architecture of a model whose completions can share a prompt; None if each completion needs its own row.

    Completions that share a prompt are separated by the attention alone. Layers with a recurrent state
    (``layer_types``) would mix them; windows are known of the architectures that say so.

    Args:
        config: of the whole model.
    """
    if config.model_type not in _BY_MODEL_TYPE:
        return None
    architecture = _BY_MODEL_TYPE[config.model_type]()
    layers = set(getattr(config.get_text_config(), "layer_types", None) or ["full_attention"])
    known = {"full_attention", "sliding_attention"} if architecture.sees_windows else {"full_attention"}
    return architecture if layers <= known else None
