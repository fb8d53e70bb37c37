"""The calls that shared rows need of a model, each of which some model class answers in its own way.

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
