"""Model families: how each asks for boxes and writes them."""

from vr1.families.base import Family
from vr1.families.choice import family_of
from vr1.families.described import Described
from vr1.families.florence2 import Florence2
from vr1.families.griffon import Griffon
from vr1.families.internvl import InternVL
from vr1.families.item_grammar import ItemGrammar
from vr1.families.paligemma import PaliGemma
from vr1.families.qwen2_5_vl import Qwen25VL
from vr1.families.qwen2_vl import Qwen2VL
from vr1.families.qwen3_vl import Qwen3VL
from vr1.families.wording import Wording

__all__ = [
    "Described",
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
