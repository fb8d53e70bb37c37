"""Which model the policy is and how it is loaded: folder or hub name, precision, adapters, resolution."""

from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    Gemma4ImageProcessor,
    Glm4vImageProcessor,
    Glm46VImageProcessor,
)

import vr1.griffon  # noqa: F401  registers Griffon-G with these classes
from vr1.errors import UserError
from vr1.families import Family, family_of
from vr1.policy.policy import Policy, RolloutForm

_GLM_PROCESSORS = (Glm4vImageProcessor, Glm46VImageProcessor)
# The numbers of image tokens that Gemma 4 was trained with, which its processor refuses others than.
_SOFT_TOKENS = (70, 140, 280, 560, 1120)


def set_resolution(image_processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
    """Set the smallest and largest area of the model's input.

    The image processors of Qwen and GLM resize an image to an area between two bounds, which are set here. InternVL's
    cuts an image into tiles of one size, whose number follows from the areas. Gemma 4's resizes every image to about
    one of five areas, of which the largest up to ``max_pixels`` is set. How an image is resized within the bounds is
    the processor's own rule.

    Args:
        image_processor: of transformers; changed in place.
        min_pixels: smallest input in pixels; None leaves the processor's own.
        max_pixels: largest input in pixels; None leaves the processor's own.

    Raises:
        UserError: the smallest is above the largest, or the processor resizes all images to one size.
    """
    if isinstance(image_processor, Gemma4ImageProcessor):
        _set_soft_tokens(image_processor, min_pixels, max_pixels)
        return
    size = dict(image_processor.size)
    if hasattr(image_processor, "merge_size"):
        # GLM's counts the pixels of all the frames of a patch, and takes a still image for as many equal ones.
        frames = image_processor.temporal_patch_size if isinstance(image_processor, _GLM_PROCESSORS) else 1
        smallest = min_pixels * frames if min_pixels else size["shortest_edge"]
        largest = max_pixels * frames if max_pixels else size["longest_edge"]
        _check_order(smallest, largest)
        size.update(shortest_edge=smallest, longest_edge=largest)
        image_processor.size = type(image_processor.size)(**size)
    elif min_pixels is None and max_pixels is None:
        return
    elif hasattr(image_processor, "max_patches"):
        tile = size["height"] * size["width"]
        smallest, largest = (min_pixels or tile) // tile, (max_pixels or tile * image_processor.max_patches) // tile
        _check_order(min_pixels or tile, max_pixels or tile * image_processor.max_patches)
        image_processor.min_patches, image_processor.max_patches = max(smallest, 1), max(largest, 1)
        image_processor.crop_to_patches = image_processor.max_patches > 1
    else:
        raise UserError(
            f"policy: min_pixels={min_pixels} and max_pixels={max_pixels}: the {type(image_processor).__name__} of this"
            f" model resizes every image to {size}; leave both out"
        )


def _set_soft_tokens(image_processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
    """Choose the number of image tokens of Gemma 4."""
    token = (image_processor.patch_size * image_processor.pooling_kernel_size) ** 2
    if min_pixels is not None:
        raise UserError(
            f"policy: min_pixels={min_pixels}: the {type(image_processor).__name__} of this model resizes every image"
            " to about one area; leave it out and set max_pixels"
        )
    if max_pixels is None:
        return
    fitting = [tokens for tokens in _SOFT_TOKENS if tokens * token <= max_pixels]
    if not fitting:
        least = _SOFT_TOKENS[0] * token
        raise UserError(f"policy: max_pixels={max_pixels}: this model takes at least {least} pixels; raise it")
    image_processor.max_soft_tokens = fitting[-1]


def _check_order(smallest: int, largest: int) -> None:
    if smallest > largest:
        raise UserError(f"policy: min_pixels={smallest} is more than max_pixels={largest}; lower it")


EMBEDDED_MODEL = str(files("vr1") / "embedded")
# Names of the parts that turn an image into features, in transformers' models.
_VISION_PARTS = ("visual", "vision_tower", "multi_modal_projector", "embed_vision", "audio_tower", "embed_audio")
# Parts that stay in ``dtype`` when the rest is quantized to 4 bits.
UNQUANTIZED = (*(f"model.{name}" for name in _VISION_PARTS), "lm_head")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters (LoRA) on the language model; the vision tower stays as it is.

    Args:
        rank: rank of the update.
        alpha: the update is scaled by ``alpha / rank``.
        dropout: probability of dropout on the adapters' input.
        targets: names of the linear layers that get an adapter.

    Source: LoRA, arXiv 2106.09685.
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
        path: a folder with a Hugging Face model, or a hub name. Default: the small model that is part of vr1.
        dtype: precision of the weights.
        lora: train adapters instead of the weights; the reference is then the model with the adapters switched off.
        quantize: store the base weights in 4 bits (``nf4``, double quantization); requires ``lora``.
        rollout_weights: with ``quantize``, what rollouts multiply with: the 4-bit weights (``quantized``), or 16-bit
            ones that are dequantized once a rollout and freed after it (``dequantized``: faster, more memory).
            ``auto`` dequantizes where the memory suffices (`vr1.rollout.weights`).
        freeze_vision: do not train the vision tower.
        gradient_checkpointing: recompute activations in backward: less memory, a third more time. ``auto`` recomputes
            those alone for which a batch leaves no memory (`vr1.policy.recomputation`), where the vision tower is not
            trained; the results are the same.
        min_pixels: smallest model input in pixels; None leaves the processor's own.
        max_pixels: largest model input in pixels, in training and evaluation; None leaves the processor's own.
        share_prompt: compute image and prompt once per group of completions (true) or once per completion (false);
            None shares them if the model can.

    Raises:
        UserError: ``quantize`` without ``lora``, or ``rollout_weights`` without ``quantize``.
    """

    path: str = EMBEDDED_MODEL
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    lora: Lora | None = None
    quantize: Literal["nf4"] | None = None
    rollout_weights: RolloutForm = "auto"
    freeze_vision: bool = False
    gradient_checkpointing: bool | Literal["auto"] = False
    min_pixels: int | None = None
    max_pixels: int | None = None
    share_prompt: bool | None = None

    def __post_init__(self) -> None:
        if self.quantize and self.lora is None:
            raise UserError(
                "policy: quantize='nf4' requires adapters, since 4-bit weights cannot be trained; set policy.lora too"
            )
        if self.rollout_weights != "auto" and not self.quantize:
            raise UserError(
                f"policy: rollout_weights={self.rollout_weights!r} changes 4-bit weights only; set policy.quantize nf4,"
                " or leave it out"
            )

    def config(self) -> Any:
        """The configuration of the model.

        Raises:
            UserError: nothing is found, it is no model, or it has no vision tower.
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
        except UserError as error:
            raise UserError(f"policy.path={self.path}: {error}") from error
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"policy.path={self.path}: no model was found there ({error}); check the path or name"
            ) from error
        # The layout of LLaVA's own code, whose sizes are elsewhere; transformers would take its defaults for them.
        if hasattr(config, "mm_vision_tower"):
            raise UserError(
                f"policy.path={self.path}: these are {config.model_type} weights in the layout of LLaVA's code, as"
                " those of Griffon v1; give Griffon-G's with Gemma 2, or weights that were converted for transformers"
            )
        if not hasattr(config, "vision_config"):
            raise UserError(
                f"policy.path={self.path}: a {config.model_type} model takes no images; give a vision-language"
                " model such as Qwen/Qwen2.5-VL-3B-Instruct"
            )
        if config.is_encoder_decoder:
            raise UserError(
                f"policy.path={self.path}: a {config.model_type} model is an encoder-decoder; give a decoder-only model"
                " such as Qwen/Qwen2.5-VL-3B-Instruct"
            )
        return config

    def check(self) -> None:
        """Check that the path holds a vision-language model, before any weights are loaded.

        Raises:
            UserError: as `config`, or the weights are pickled or missing.
        """
        self.config()
        path = Path(self.path)
        if path.is_dir() and not any(path.glob("*.safetensors")):
            others = ", ".join(sorted(file.name for file in path.glob("*.bin"))) or "no weights"
            raise UserError(
                f"policy.path={self.path}: found {others}, but only safetensors weights are read (pickled weights can"
                " run code); load the model with transformers once and save it again with save_pretrained"
            )

    def family(self) -> Family:
        """The family of the model, chosen by its config.

        Raises:
            UserError: no family is known for this kind of model; the message says how to set one.
        """
        return family_of(self.config().model_type)

    def processor(self) -> Any:
        """The model's processor, with ``min_pixels`` and ``max_pixels`` set.

        Raises:
            UserError: tokenizer or image processor cannot be read, or the resolution cannot be set.
        """
        try:
            processor = AutoProcessor.from_pretrained(self.path)
        except (OSError, ValueError) as error:
            raise UserError(
                f"policy.path={self.path}: its tokenizer or image processor cannot be read ({error}); copy these files"
                " of the original model into the folder"
            ) from error
        set_resolution(processor.image_processor, self.min_pixels, self.max_pixels)
        return processor

    def load(self) -> Policy:
        """Load the weights (safetensors only) and apply the settings.

        Raises:
            UserError: no layer has one of the names ``lora.targets``.
        """
        return self.wrap(self.load_network())

    def load_network(self, dtype: torch.dtype | None = None) -> Any:
        """The model of transformers with the weights of ``path``, without adapters.

        Args:
            dtype: precision of the weights; None takes that of the settings.
        """
        quantization = None
        if self.quantize:
            quantization = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=self.quantize,
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=getattr(torch, self.dtype),
                llm_int8_skip_modules=list(UNQUANTIZED),
            )
        return AutoModelForImageTextToText.from_pretrained(
            self.path,
            dtype=dtype or getattr(torch, self.dtype),
            # Sharing prompts passes a mask of its own, which only this implementation takes unchanged.
            attn_implementation="sdpa",
            quantization_config=quantization,
            use_safetensors=True,
        )

    def wrap(self, network: Any) -> Policy:
        """Make a policy of a transformers model, with parts frozen, recomputed and adapted according to the settings.

        Args:
            network: a model of transformers with the weights of ``path``, or with none (``meta`` device); changed in
                place.

        Raises:
            UserError: no layer has one of the names ``lora.targets``.
        """
        if self.freeze_vision:
            for name in _VISION_PARTS:
                if hasattr(network.model, name):
                    getattr(network.model, name).requires_grad_(False)
        base = network
        if self.lora is not None:
            try:
                # For 4-bit weights too: peft's own preparation would convert all other weights to float32.
                network = get_peft_model(network, self.lora_config())
            except ValueError as error:
                raise UserError(f"policy.lora.targets={self.lora.targets}: {error}") from error
        if self.gradient_checkpointing:
            # After the adapters: peft and transformers would both add hooks for reentrant checkpointing.
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return Policy(network.train(), self.share_prompt, self.rollout_weights, self.gradient_checkpointing == "auto")

    def lora_config(self) -> LoraConfig:
        """The adapters as peft's configuration; ``lora`` must be set."""
        assert self.lora is not None
        names = "|".join(self.lora.targets)
        return LoraConfig(
            r=self.lora.rank,
            lora_alpha=self.lora.alpha,
            lora_dropout=self.lora.dropout,
            target_modules=rf".*language_model.*\.({names})",
            task_type="CAUSAL_LM",
        )
