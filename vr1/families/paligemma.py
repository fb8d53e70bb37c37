"""PaliGemma: four location tokens, top first, then the label: ``<loc0010><loc0020><loc0500><loc1000> cat``."""

from vr1.families.base import Family, Wording
from vr1.families.item_grammar import ItemGrammar


class PaliGemma(Family):
    """PaliGemma's way of detection (1 and 2), with one token for each of 1024 places along an axis.

    An answer without any object is empty.

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
    # Coordinates outside the image go to its edge, since there is no token for them.
    grammar = ItemGrammar(
        item="{box} {label}",
        box="<loc{y1:04.0f}><loc{x1:04.0f}><loc{y2:04.0f}><loc{x2:04.0f}>",
        separator=" ; ",
        empty="",
        largest=1023,
    )
    markers = tuple(f"<loc{place:04d}>" for place in range(1024))
