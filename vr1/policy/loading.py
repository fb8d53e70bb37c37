"""Where the policy comes from: a model folder or hub name, its precision, its adapters, its resolution."""

from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

from vr1.errors import UserError
from vr1.families import Family, family_of
from vr1.policy.policy import Policy


def set_resolution(image_processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
    """Bound the pixels of the model's input.

    Qwen's processors keep an image between two areas, which are set here; InternVL's cuts it into tiles of one size,
    whose number follows from the areas. How an image is resized between the bounds stays the processor's own rule.

    Args:
        image_processor: of transformers; changed in place.
        min_pixels: smallest input in pixels; None keeps the processor's own.
        max_pixels: largest input in pixels; None keeps the processor's own.

    Raises:
        UserError: the smallest is above the largest, or the processor has one size for all images.
    """
    size = dict(image_processor.size)
    if hasattr(image_processor, "merge_size"):
        least, most = min_pixels or size["shortest_edge"], max_pixels or size["longest_edge"]
        _refuse_crossed(least, most)
        size.update(shortest_edge=least, longest_edge=most)
        image_processor.size = type(image_processor.size)(**size)
    elif min_pixels is None and max_pixels is None:
        return
    elif hasattr(image_processor, "max_patches"):
        tile = size["height"] * size["width"]
        least, most = (min_pixels or tile) // tile, (max_pixels or tile * image_processor.max_patches) // tile
        _refuse_crossed(min_pixels or tile, max_pixels or tile * image_processor.max_patches)
        image_processor.min_patches, image_processor.max_patches = max(least, 1), max(most, 1)
        image_processor.crop_to_patches = image_processor.max_patches > 1
    else:
        raise UserError(
            f"policy: min_pixels={min_pixels} and max_pixels={max_pixels}: the {type(image_processor).__name__} of this"
            f" model makes every image {size}; leave both out"
        )


def _refuse_crossed(least: int, most: int) -> None:
    if least > most:
        raise UserError(f"policy: min_pixels={least} is more than max_pixels={most}; lower it")


EMBEDDED_MODEL = str(files("vr1") / "embedded")
# What transformers' models call the parts that turn an image into features.
_SEEING = ("visual", "vision_tower", "multi_modal_projector")
# What keeps its precision where the rest is held in 4 bits.
UNQUANTIZED = (*(f"model.{name}" for name in _SEEING), "lm_head")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters on the language model; the vision tower stays as it is.

    Args:
        rank: rank of the update.
        alpha: the update is scaled by ``alpha / rank``.
        dropout: dropout on the adapters' input.
        targets: names of the linear layers that get an adapter.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )


@dataclass(frozen=True, kw_only=True)
class PolicySource:
    """Which model to train or evaluate, and how to load it.

    Args:
        path: a folder with a Hugging Face model, or a hub name. Default: the small model that comes with vr1.
        dtype: precision of the weights.
        lora: train adapters instead of the weights; then the reference policy is the model with the adapters off.
        quantize: hold the base weights in 4 bits (``nf4``, double quantisation); needs ``lora``.
        freeze_vision: leave the vision tower as it is.
        gradient_checkpointing: recompute activations in backward: less memory, a third more time.
        min_pixels: smallest model input in pixels; None keeps the processor's own.
        max_pixels: largest model input in pixels, in training and evaluation alike; None keeps the processor's own.
        share_prompt: compute image and prompt once per group of completions (true) or once per completion (false);
            None shares them where the model can.

    Raises:
        UserError: ``quantize`` without ``lora``.
    """

    path: str = EMBEDDED_MODEL
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    lora: Lora | None = None
    quantize: Literal["nf4"] | None = None
    freeze_vision: bool = False
    gradient_checkpointing: bool = False
    min_pixels: int | None = None
    max_pixels: int | None = None
    share_prompt: bool | None = None

    def __post_init__(self) -> None:
        if self.quantize and self.lora is None:
            raise UserError(
                "policy: quantize='nf4' needs adapters, since 4-bit weights cannot be trained: set lora too"
            )

    def check(self) -> None:
        """Refuse a path that holds no vision-language model, before anything heavy is loaded.

        Raises:
            UserError: nothing there, no model there, or a model without a vision tower.
        """
        path = Path(self.path)
        hub_name = self.path.count("/") == 1 and not self.path.startswith((".", "~", "/")) and not path.exists()
        if not hub_name and not (path / "config.json").is_file():
            raise UserError(
                f"policy.path={self.path}: no config.json there; give a folder written by save_pretrained, or the name"
                " of a model on the hub"
            )
        try:
            config = AutoConfig.from_pretrained(self.path)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"policy.path={self.path}: no model could be found there ({error})") from error
        if not hasattr(config, "vision_config"):
            raise UserError(
                f"policy.path={self.path}: a {config.model_type} model does not see images; give a vision-language"
                " model such as Qwen/Qwen2.5-VL-3B-Instruct"
            )
        if config.is_encoder_decoder:
            raise UserError(
                f"policy.path={self.path}: a {config.model_type} model is an encoder with a decoder; give a model that"
                " goes on from its prompt, such as Qwen/Qwen2.5-VL-3B-Instruct"
            )
        if path.is_dir() and not any(path.glob("*.safetensors")):
            others = ", ".join(sorted(file.name for file in path.glob("*.bin"))) or "no weights at all"
            raise UserError(
                f"policy.path={self.path}: found {others}, and only weights in safetensors are read (pickled ones can"
                " run code); load such a model with transformers once and write it anew by save_pretrained"
            )

    def family(self) -> Family:
        """The family of the model, by its config.

        Raises:
            UserError: none is known for such a model; the message says how to set one.
        """
        return family_of(AutoConfig.from_pretrained(self.path).model_type)

    def processor(self) -> Any:
        """The model's processor, with this source's resolution."""
        try:
            processor = AutoProcessor.from_pretrained(self.path)
        except (OSError, ValueError) as error:
            raise UserError(
                f"policy.path={self.path}: its tokenizer or image processor cannot be read ({error}); copy those files"
                " of the original model into the folder"
            ) from error
        set_resolution(processor.image_processor, self.min_pixels, self.max_pixels)
        return processor

    def load(self) -> Policy:
        """Load the weights (safetensors only) and add what the settings ask for."""
        quantization = None
        if self.quantize:
            quantization = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=self.quantize,
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=getattr(torch, self.dtype),
                llm_int8_skip_modules=list(UNQUANTIZED),
            )
        network: Any = AutoModelForImageTextToText.from_pretrained(
            self.path,
            dtype=getattr(torch, self.dtype),
            # What shares prompts brings a mask of its own, which of the implementations only this one takes as it is.
            attn_implementation="sdpa",
            quantization_config=quantization,
            use_safetensors=True,
        )
        for layer in network.modules():
            if isinstance(layer, Linear4bit):
                # On some CPUs bitsandbytes repacks the weights at the first rollout, for good and for a product that
                # has no gradient: what is below it could not be trained after that.
                layer.support_avx512bf16_for_cpu = False
        return Policy(self.prepared(network), self.share_prompt)

    def prepared(self, network: Any) -> Any:
        """A transformers model with its parts frozen, recomputed and adapted as the settings ask for."""
        if self.freeze_vision:
            for part in _seeing_parts(network):
                part.requires_grad_(False)
        if self.gradient_checkpointing:
            network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            _leave_inputs_alone(network)
        if self.lora is not None:
            try:
                # In 4 bits too: peft's own preparation would widen all that is not quantised, for nothing.
                network = get_peft_model(network, self.lora_config())
            except ValueError as error:
                raise UserError(f"policy.lora.targets={self.lora.targets}: {error}") from error
            _leave_inputs_alone(network.get_base_model())
        return network.train()

    def lora_config(self) -> LoraConfig:
        """The adapters as peft describes them; only for a source that has some."""
        assert self.lora is not None
        names = "|".join(self.lora.targets)
        return LoraConfig(
            r=self.lora.rank,
            lora_alpha=self.lora.alpha,
            lora_dropout=self.lora.dropout,
            target_modules=rf".*language_model.*\.({names})",
            task_type="CAUSAL_LM",
        )


def _leave_inputs_alone(network: Any) -> None:
    """Undo what reentrant checkpointing would need: here it had backward go through a frozen vision tower."""
    if getattr(network, "_require_grads_hooks", None):
        network.disable_input_require_grads()


def _seeing_parts(network: Any) -> list[torch.nn.Module]:
    return [getattr(network.model, name) for name in _SEEING if hasattr(network.model, name)]
