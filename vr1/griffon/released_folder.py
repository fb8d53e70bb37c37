"""Writes Griffon-G as the released weights are laid out, for the authors' code and tools that read it."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig

from vr1.errors import UserError
from vr1.griffon.config import RELEASED_TYPE, GriffonGConfig
from vr1.griffon.released import region_names, to_released

_TOWER = "checkpoints/clip-vit-large-patch14-336_to_1022"
# Keys that the released code reads in addition to those of Gemma 2, for models not made from released weights.
_KEYS = {
    "architectures": ["GriffonGemma2ForCausalLM"],
    "image_aspect_ratio": "square",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_tower": _TOWER,
    "model_type": RELEASED_TYPE,
    "use_mm_proj": True,
}


def write_released(network: Any, processor: Any, folder: Path, base: str) -> None:
    """Write a model under the released names, with a released ``config.json`` and the vision tower's folder inside.

    The second image encoder of the released weights, which vr1 does not load, is copied from ``base`` if that is their
    folder; else the config says that there is none.

    Args:
        network: a `vr1.griffon.GriffonGForConditionalGeneration`.
        processor: its processor.
        folder: created if it is missing.
        base: the folder that the model was loaded from.

    Raises:
        UserError: a model of another class, or around another language model than Gemma 2.
    """
    config = network.config
    if not isinstance(config, GriffonGConfig) or config.text_config.model_type != "gemma2":
        raise UserError(
            f"a {config.model_type} model has no released names; only Griffon-G with Gemma 2 is written with --released"
        )
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {to_released(name): value.contiguous() for name, value in network.state_dict().items()}
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    regions = _region_tensors(Path(base))
    save_torch_state_dict(tensors | regions, folder, max_shard_size="5GB")
    dtype = str(network.dtype).removeprefix("torch.")
    written = _released_config(config) | {"torch_dtype": dtype, "unshared_visual_encoder": bool(regions)}
    (folder / "config.json").write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")
    network.generation_config.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    tower = folder / Path(written["mm_vision_tower"]).name
    # Without what depends on this machine.
    CLIPVisionConfig(**config.vision_config.to_dict()).save_pretrained(tower)
    side, images = config.vision_config.image_size, processor.image_processor
    CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size=side, image_mean=images.image_mean, image_std=images.image_std
    ).save_pretrained(tower)


def _released_config(config: GriffonGConfig) -> dict[str, Any]:
    """The keys of a flat config: Gemma 2's, and those of the released code."""
    text = config.text_config.to_diff_dict()
    for key in ("architectures", "dtype", "rope_parameters", "transformers_version"):
        text.pop(key, None)
    return {
        **text,
        # transformers 4.45, which the released code requires, reads these.
        "rope_theta": config.text_config.rope_parameters["rope_theta"],
        "hidden_act": config.text_config.hidden_activation,
        "cache_implementation": "hybrid",
        **_KEYS,
        **(config.released or {}),
        "mm_projector_type": config.projector_type,
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_hidden_size": config.vision_config.hidden_size,
    }


def _region_tensors(base: Path) -> dict[str, Tensor]:
    """Tensors of the second image encoder in a folder of released weights."""
    found: dict[str, Tensor] = {}
    for name, file in region_names(base).items():
        with safe_open(file, framework="pt") as tensors:
            found[name] = tensors.get_tensor(name)
    return found
