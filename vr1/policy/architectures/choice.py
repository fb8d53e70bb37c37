"""Which architecture a model is, by its config."""

from typing import Any

from vr1.policy.architectures.base import Architecture
from vr1.policy.architectures.internvl import InternVL
from vr1.policy.architectures.qwen_vl import Qwen3VL, QwenVL

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
