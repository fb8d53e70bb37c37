"""Griffon-G: ``label-[x1,y1,x2,y2]`` joined by ``&``, both axes from 0 to 1, three decimals."""

from vr1.families.base import Family, Wording
from vr1.families.item_grammar import ItemGrammar


class Griffon(Family):
    """Griffon-G, whose questions are also those of Vision-R1-Data.

    Its weights are loaded by `vr1.griffon`. The image is resized to a square, so that each axis has its own scale.
    Without an object the answer is ``None``; no published text says what Griffon writes.

    Source: Vision-R1, arXiv 2503.18013, supplementary (questions and answers of Griffon-G).

    Example:
        >>> from vr1.types import as_boxes
        >>> family = Griffon()
        >>> family.write(as_boxes([[0.0012, 0.345, 0.1, 0.5]]), ["cat"])
        'cat-[0.001,0.345,0.100,0.500]'
        >>> answer = family.read("cat-[0.001,0.345,0.100,0.500]&dog-[0.2,")
        >>> answer.labels, answer.boxes.tolist()
        (('cat',), [[0.001, 0.345, 0.1, 0.5]])
    """

    model_types = ("griffon_g",)
    frame = 1.0
    wording = Wording(
        one="Locate the exact position of {categories} in the picture, if you can.",
        several="Examine the image for any objects from the category set. Report the coordinates of each detected "
        "object. The category set includes {categories}.",
        referring="Can you point out {categories} in the image and provide the coordinates of its location?",
    )
    grammar = ItemGrammar(item="{label}-{box}", box="[{x1:.3f},{y1:.3f},{x2:.3f},{y2:.3f}]", separator="&")
