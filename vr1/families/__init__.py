"""Model families: how each asks for boxes and writes them."""

from vr1.errors import UserError
from vr1.families.base import Family, Wording
from vr1.families.custom import CustomFamily
from vr1.families.florence2 import Florence2
from vr1.families.griffon import Griffon
from vr1.families.internvl import InternVL
from vr1.families.item_grammar import ItemGrammar
from vr1.families.paligemma import PaliGemma
from vr1.families.qwen import Qwen2VL, Qwen3VL, Qwen25VL

__all__ = [
    "CustomFamily",
    "Family",
    "Florence2",
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

_CHOSEN_BY_CONFIG: tuple[type[Family], ...] = (Qwen25VL, Qwen2VL, Qwen3VL, InternVL, PaliGemma)


def family_of(model_type: str) -> Family:
    """The family whose models have this ``model_type``.

    Raises:
        UserError: no family has it. None is taken by default: coordinates would be read in a frame that is a guess.

    Example:
        >>> family_of("qwen3_vl").frame
        1000.0
    """
    for family in _CHOSEN_BY_CONFIG:
        if model_type in family.model_types:
            return family()
    known = ", ".join(name for family in _CHOSEN_BY_CONFIG for name in family.model_types)
    raise UserError(
        f"no family is known for a {model_type} model (known: {known}); say how it is asked and how it writes boxes:"
        " family.class_path=vr1.families.CustomFamily with its frame, wording and grammar, or a family that it was"
        " trained to imitate"
    )
