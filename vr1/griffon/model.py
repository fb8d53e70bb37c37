"""Griffon-G: a CLIP vision tower, a convolution that halves the map of patches, and a language model.

Shape letters: I images, S side of the map of patches, N tokens of an image, B rows, L tokens of a row, D width of the
language model, F width of the vision tower, V vocabulary.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, CLIPVisionModel, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import logging

from vr1.griffon.config import END_OF_TURN_ID, PROJECTORS, GriffonGConfig
from vr1.griffon.released import KEY_MAPPING, LEFT_OUT, check_names, region_names

_logger = logging.get_logger(__name__)


class GriffonGProjector(nn.Module):
    """From features of patches to features of image tokens: a 3 x 3 convolution with stride 2, GELU, a linear layer.

    Args:
        config: of the model.
    """

    def __init__(self, config: GriffonGConfig) -> None:
        super().__init__()
        width = config.text_config.hidden_size
        padding = PROJECTORS[config.projector_type]
        self.conv = nn.Conv2d(config.vision_config.hidden_size, width, kernel_size=3, stride=2, padding=padding)
        self.activation = nn.GELU()
        self.linear = nn.Linear(width, width)

    def forward(self, patches: Tensor) -> Tensor:
        """Features ``[I, N, D]`` of patches ``[I, S * S, F]``, row by row."""
        side = round(patches.shape[1] ** 0.5)
        maps = self.conv(patches.transpose(1, 2).unflatten(2, (side, side)))
        return self.linear(self.activation(maps).flatten(2).transpose(1, 2))


class GriffonGPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of the classes below."""

    config_class = GriffonGConfig
    config: GriffonGConfig
    base_model_prefix = "model"
    input_modalities = ["image", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = LEFT_OUT


class GriffonGModel(GriffonGPreTrainedModel):
    """Griffon-G without its output layer.

    Layers of the vision tower above the one that the projector reads have weights, as in the released checkpoints, but
    are neither computed nor trained.

    Args:
        config: the config.
    """

    def __init__(self, config: GriffonGConfig) -> None:
        super().__init__(config)
        if getattr(config.text_config, "attn_logit_softcapping", None) and config._attn_implementation == "sdpa":
            # torch's fused attention does not cap scores.
            config.text_config._attn_implementation = "eager"
        self.vision_tower = CLIPVisionModel._from_config(config.vision_config)
        self.multi_modal_projector = GriffonGProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.freeze_unused()
        self.post_init()

    def freeze_unused(self) -> None:
        """Stop training the parts of the vision tower that nothing reads, for which there are no gradients."""
        unused = self.vision_tower.encoder.layers[self.config.vision_layers :]
        for part in (*unused, self.vision_tower.post_layernorm):
            part.requires_grad_(False)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of the language model."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding of the language model."""
        self.language_model.set_input_embeddings(value)

    def get_image_features(self, pixel_values: Tensor, **_settings: Any) -> BaseModelOutputWithPooling:
        """Features of images, as they replace the embeddings of the image tokens.

        Gemma 2 multiplies embeddings by the root of its width. In the transformers version of the released code (4.45)
        its model does so with all inputs, image features included; later versions do it in the embedding of tokens, so
        that features must be multiplied here.

        Args:
            pixel_values: ``[I, 3, height, width]``.

        Returns:
            Features of the patches as ``last_hidden_state`` ``[I, S * S, F]``, of the image tokens as ``pooler_output``
            ``[I, N, D]``.
        """
        states = self.vision_tower.pre_layrnorm(self.vision_tower.embeddings(pixel_values.to(self.vision_tower.dtype)))
        for layer in self.vision_tower.encoder.layers[: self.config.vision_layers]:
            states = layer(states, attention_mask=None)
        # Without the class token.
        patches = states[:, 1:]
        features = self.multi_modal_projector(patches)
        text = self.config.text_config
        if text.model_type == "gemma2":
            # Rounded to the precision of the weights, as the embedding does.
            like = self.get_parameter("language_model.embed_tokens.weight")
            features = features * torch.tensor(text.hidden_size**0.5, dtype=like.dtype, device=features.device)
        return BaseModelOutputWithPooling(last_hidden_state=patches, pooler_output=features)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **settings: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states of the language model.

        Args:
            input_ids: ``[B, L]``, with the image token once for each feature of an image.
            pixel_values: ``[I, 3, height, width]``, in the order of their tokens; None where all is text.
            inputs_embeds: ``[B, L, D]`` in the place of ``input_ids``, for text alone.
            settings: further arguments of the language model.

        Raises:
            ValueError: the image tokens are not as many as the features.
        """
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            assert input_ids is not None, "images need the tokens that they replace"
            features = self.get_image_features(pixel_values).pooler_output
            assert features is not None
            features = features.flatten(0, 1)
            mask = input_ids == self.config.image_token_id
            if int(mask.sum()) != len(features):
                raise ValueError(f"{int(mask.sum())} image tokens, but the images have {len(features)} features")
            inputs_embeds = inputs_embeds.masked_scatter(mask[..., None], features.to(inputs_embeds.dtype))
        return self.language_model(inputs_embeds=inputs_embeds, **{**settings, "return_dict": True})


class GriffonGForConditionalGeneration(GriffonGPreTrainedModel, GenerationMixin):
    """Griffon-G.

    ``from_pretrained`` reads folders written by ``save_pretrained`` and those of the released weights alike
    (`vr1.griffon.released` has the names), from safetensors only.

    Args:
        config: the config.

    Example:
        >>> text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8,
        ...     "vocab_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
        >>> vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        ...     "image_size": 28, "patch_size": 4}
        >>> model = GriffonGForConditionalGeneration(GriffonGConfig(text_config=text, vision_config=vision))
        >>> model.get_image_features(torch.zeros(1, 3, 28, 28)).pooler_output.shape
        torch.Size([1, 16, 16])
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: GriffonGConfig) -> None:
        super().__init__(config)
        self.model = GriffonGModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of the language model."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding of the language model."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The output layer."""
        return self.lm_head

    def get_image_features(self, pixel_values: Tensor, **settings: Any) -> BaseModelOutputWithPooling:
        """Features of images; see `GriffonGModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, **settings)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., V]`` of hidden states ``[..., D]``, capped where the config says so (Gemma 2)."""
        logits = self.lm_head(hidden)
        cap = getattr(self.config.text_config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        **settings: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the next tokens.

        Args:
            input_ids: ``[B, L]``, with the image token once for each feature of an image.
            pixel_values: ``[I, 3, height, width]``, in the order of their tokens.
            attention_mask: ``[B, L]``, 1 on tokens and 0 on padding.
            inputs_embeds: ``[B, L, D]`` in the place of ``input_ids``, for text alone.
            labels: ``[B, L]`` tokens for a cross-entropy loss, -100 where there is none.
            logits_to_keep: number of last tokens whose logits are computed; 0 for all.
            settings: further arguments of the language model.
        """
        outputs = self.model(input_ids, pixel_values, inputs_embeds, attention_mask=attention_mask, **settings)
        logits = self.logits(outputs.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1])
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load weights under the names of vr1 or of the release; arguments as for transformers' ``from_pretrained``.

        Raises:
            UserError: tensors are missing, left over or of another size.
        """
        with_info = kwargs.pop("output_loading_info", False)
        kwargs |= {"key_mapping": KEY_MAPPING, "use_safetensors": True, "output_loading_info": True}
        # Reported here instead, in one error.
        kwargs["ignore_mismatched_sizes"] = True
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model, info = loaded
        other = {
            f"{name}: {list(theirs)} in the file, {list(ours)} by the config"
            for name, theirs, ours in info["mismatched_keys"]
        }
        check_names(str(pretrained_model_name_or_path), info["missing_keys"], info["unexpected_keys"], other)
        # Without a path, the caller has given the weights themselves.
        if pretrained_model_name_or_path and (left_out := region_names(Path(pretrained_model_name_or_path))):
            _logger.warning(
                "%s: %d tensors of a second image encoder, for referring by an image, are left out; `vr1 export"
                " --released` copies them",
                pretrained_model_name_or_path,
                len(left_out),
            )
        # Loading replaces parameters.
        model.model.freeze_unused()
        if model.config.released is not None:
            # The released code stops at the text of this token, and its files may not name it.
            ends = model.generation_config.eos_token_id
            ends = [*ends] if isinstance(ends, list | tuple) else [ends]
            model.generation_config.eos_token_id = list(dict.fromkeys([END_OF_TURN_ID, *ends]))
        return (model, info) if with_info else model

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Write the weights under the names of vr1; arguments as for transformers' ``save_pretrained``."""
        super().save_pretrained(save_directory, **{**kwargs, "save_original_format": False})
