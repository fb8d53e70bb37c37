"""InternVL: ``<ref>label</ref><box>[[x1, y1, x2, y2]]</box>``, both axes from 0 to 1000 over the full image."""

from vr1.families.base import Family, Wording
from vr1.families.item_grammar import ItemGrammar


class InternVL(Family):
    """InternVL 2, 2.5 and 3, as converted for transformers.

    Consecutive boxes of one label share an item. The processor splits an image into square tiles or resizes it to one;
    coordinates refer to the full image in both cases. Without an object the answer is ``None``; the published formats
    do not define one.

    Source: InternVL's documentation, chat data format (grounding and detection data); its own evaluation on RefCOCO
        (questions about referring expressions).

    Example:
        >>> from vr1.types import as_boxes
        >>> family = InternVL()
        >>> family.write(as_boxes([[1, 2, 30, 40], [5, 6, 70, 80]]), ["cat", "cat"])
        '<ref>cat</ref><box>[[1, 2, 30, 40], [5, 6, 70, 80]]</box>'
        >>> family.read("cat[[1, 2, 30, 40]]").labels
        ('cat',)
    """

    model_types = ("internvl",)
    frame = 1000.0
    wording = Wording(
        one="Please provide the bounding box coordinates of every region this describes: <ref>{categories}</ref>",
        several="Please detect all objects of these categories in the image and mark their positions: "
        "<ref>{categories}</ref>",
        referring="Please provide the bounding box coordinate of the region this sentence describes: "
        "<ref>{categories}</ref>",
        between="</ref>, <ref>",
    )
    grammar = ItemGrammar(item="<ref>{label}</ref><box>[{boxes}]</box>")
    markers = ("<ref>", "</ref>", "<box>", "</box>")
