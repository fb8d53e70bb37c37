"""Model families: the questions that each was trained on and the form of its answers."""

from vr1.errors import UserError
from vr1.families.base import Family, Wording
from vr1.families.custom import CustomFamily
from vr1.families.gemma import Gemma
from vr1.families.glm import GLM4V
from vr1.families.griffon import Griffon
from vr1.families.internvl import InternVL
from vr1.families.item_grammar import ItemGrammar
from vr1.families.location_tokens import Florence2, PaliGemma
from vr1.families.qwen import Qwen2VL, Qwen3VL, Qwen25VL

__all__ = [
    "GLM4V",
    "CustomFamily",
    "Family",
    "Florence2",
    "Gemma",
    "Griffon",
    "InternVL",
    "ItemGrammar",
    "PaliGemma",
    "Qwen2VL",
    "Qwen3VL",
    "Qwen25VL",
    "Wording",
    "family_of",
]

_BY_MODEL_TYPE: tuple[type[Family], ...] = (Qwen25VL, Qwen2VL, Qwen3VL, InternVL, PaliGemma, Gemma, GLM4V, Griffon)


def family_of(model_type: str) -> Family:
    """The family of the models with this ``model_type``.

    Raises:
        UserError: no family has it. There is no default: coordinates read in a wrong frame are wrong without an error.

    Example:
        >>> family_of("qwen3_vl").frame
        1000.0
    """
    for family in _BY_MODEL_TYPE:
        if model_type in family.model_types:
            return family()
    known = ", ".join(name for family in _BY_MODEL_TYPE for name in family.model_types)
    raise UserError(
        f"no family is known for a {model_type} model (known: {known}); set family.class_path to"
        " vr1.families.CustomFamily with frame, wording and grammar, or to a family whose answers the model was trained"
        " to write"
    )
