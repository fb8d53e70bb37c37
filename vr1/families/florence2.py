"""Florence-2: a label and four location tokens for each of its boxes: ``cat<loc_20><loc_10><loc_999><loc_500>``."""

from vr1.families.base import Family, Wording
from vr1.families.item_grammar import ItemGrammar


class Florence2(Family):
    """Florence-2's way of detection, with one token for each of 1000 bins along an axis; a bin means its middle.

    Questions open with its task tokens, which its processor words. Supported are the words and the frame, for recorded
    answers. The model is an encoder with a decoder, whose prompt is no prefix of the answer: the policies here are
    decoders, so it is neither trained nor run by this program.

    Source: Florence-2, arXiv 2311.06242, section 3 (location tokens); its processor in transformers (bins, wording).

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
    # Coordinates outside the image go to its edge, since there is no token for them.
    grammar = ItemGrammar(
        item="{label}{boxes}",
        box="<loc_{x1}><loc_{y1}><loc_{x2}><loc_{y2}>",
        separator="",
        box_separator="",
        empty="",
        shift=0.5,
        largest=999,
    )
    markers = tuple(f"<loc_{place}>" for place in range(1000))
