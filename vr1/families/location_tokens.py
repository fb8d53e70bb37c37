"""Families that write each coordinate as one special token: PaliGemma and Florence-2.

Coordinates outside the image are written as the nearest edge, since there is no token for them.
"""

from vr1.families.base import Family, Wording
from vr1.families.item_grammar import ItemGrammar


class PaliGemma(Family):
    """PaliGemma 1 and 2: four location tokens, y before x, then the label.

    An axis has 1024 positions, each with a token. The answer is empty where there is no object.

    Source: PaliGemma, arXiv 2407.07726, section 3.2.1 (detection); Pix2Seq, arXiv 2109.10852 (location tokens).

    Example:
        >>> from vr1.types import as_boxes
        >>> family = PaliGemma()
        >>> family.instruction(["cat", "dog"])
        'detect cat ; dog'
        >>> family.write(as_boxes([[20, 10, 1000, 500]]), ["cat"])
        '<loc0010><loc0020><loc0500><loc1000> cat'
    """

    model_types = ("paligemma",)
    frame = 1023.0
    wording = Wording(one="detect {categories}", between=" ; ")
    grammar = ItemGrammar(
        item="{box} {label}",
        box="<loc{y1:04.0f}><loc{x1:04.0f}><loc{y2:04.0f}><loc{x2:04.0f}>",
        separator=" ; ",
        empty="",
        largest=1023,
    )
    markers = tuple(f"<loc{number:04d}>" for number in range(1024))


class Florence2(Family):
    """Florence-2: a label and four location tokens for each of its boxes.

    An axis has 1000 bins, each with a token; a token stands for the middle of its bin. Questions start with a task
    token, which Florence-2's processor replaces by a sentence.

    For recorded answers only. The model is an encoder-decoder, and policies here are decoder-only: it can be neither
    trained nor run.

    Source: Florence-2, arXiv 2311.06242, section 3 (location tokens); its processor in transformers (bins, questions).

    Example:
        >>> from vr1.types import as_boxes
        >>> family = Florence2()
        >>> family.write(as_boxes([[20.2, 10.7, 1000, 500.5], [1.5, 1.5, 2.5, 2.5]]), ["cat", "cat"])
        'cat<loc_20><loc_10><loc_999><loc_500><loc_1><loc_1><loc_2><loc_2>'
        >>> family.read("cat<loc_20><loc_10><loc_999><loc_500>").boxes.tolist()
        [[20.5, 10.5, 999.5, 500.5]]
    """

    frame = 1000.0
    wording = Wording(
        one="<OPEN_VOCABULARY_DETECTION>{categories}",
        referring="<CAPTION_TO_PHRASE_GROUNDING>{categories}",
        between=". ",
    )
    grammar = ItemGrammar(
        item="{label}{boxes}",
        box="<loc_{x1}><loc_{y1}><loc_{x2}><loc_{y2}>",
        separator="",
        box_separator="",
        empty="",
        shift=0.5,
        largest=999,
    )
    markers = tuple(f"<loc_{number}>" for number in range(1000))
