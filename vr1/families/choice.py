"""Which family a model belongs to, by the ``model_type`` of its config."""

from vr1.families.base import Family
from vr1.families.internvl import InternVL
from vr1.families.paligemma import PaliGemma
from vr1.families.qwen2_5_vl import Qwen25VL
from vr1.families.qwen2_vl import Qwen2VL
from vr1.families.qwen3_vl import Qwen3VL

_CHOSEN_BY_CONFIG: tuple[type[Family], ...] = (Qwen25VL, Qwen2VL, Qwen3VL, InternVL, PaliGemma)


def family_of(model_type: str) -> Family:
    """The family whose models have this ``model_type``.

    Raises:
        ValueError: no family has it. None is taken by default: coordinates would be read in a frame that is a guess.

    Example:
        >>> family_of("qwen3_vl").frame
        1000.0
    """
    for family in _CHOSEN_BY_CONFIG:
        if model_type in family.model_types:
            return family()
    known = ", ".join(name for family in _CHOSEN_BY_CONFIG for name in family.model_types)
    raise ValueError(
        f"no family is known for a {model_type} model (known: {known}); say how it is asked and how it writes boxes:"
        " family.class_path=vr1.families.Described with its frame, wording and grammar, or a family that it was trained"
        " to imitate"
    )
