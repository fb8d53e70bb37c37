"""One object of every family, for the tests that hold for all of them."""

from vr1.families import (
    GLM4V,
    CustomFamily,
    Florence2,
    Gemma,
    Griffon,
    InternVL,
    ItemGrammar,
    PaliGemma,
    Qwen2VL,
    Qwen3VL,
    Qwen25VL,
    Wording,
)

FAMILIES = [
    Qwen25VL(),
    Qwen2VL(),
    Qwen3VL(),
    InternVL(),
    Gemma(),
    GLM4V(),
    Griffon(),
    PaliGemma(),
    Florence2(),
    CustomFamily(frame="image", wording=Wording(one="Find {categories}."), grammar=ItemGrammar()),
    CustomFamily(frame=999, wording=Wording(one="Find {categories}.")),
]
NAMES = [f"{type(family).__name__}-{family.frame}" for family in FAMILIES]
