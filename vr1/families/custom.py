"""A family defined by settings, for models without a class of their own."""

from collections.abc import Sequence

import numpy as np

from vr1.boxes import Frame
from vr1.errors import UserError
from vr1.families.base import Family, Wording
from vr1.families.item_grammar import ItemGrammar
from vr1.types import as_boxes


class CustomFamily(Family):
    """Questions, form of the answer and frame from a YAML file.

    For a model that writes ``cat: (1,2,30,40); dog: (5,6,70,80)``::

        family:
          class_path: vr1.families.CustomFamily
          init_args:
            frame: 1000
            wording: {one: "Find every {categories}."}
            grammar: {item: "{label}: {box}", box: "({x1},{y1},{x2},{y2})", separator: "; ", empty: nothing}
            markers: []

    For a model that writes ``[{"box_2d": [y1, x1, y2, x2], "label": "cat"}]``, ``box_key: box_2d`` and ``y_first:
    true`` instead of the grammar. In a frame of 1, JSON is written with three decimals.

    Args:
        frame: unit of the coordinates: pixels of the model's ``input``, pixels of the ``image``, or the number that
            both axes end at. There is no default, since a wrong frame gives wrong boxes without an error.
        wording: templates of the questions.
        grammar: templates of an answer; None for a JSON list of ``box_key`` and ``label``.
        markers: special tokens that are part of an answer.
        box_key: the name of a box in that JSON list.
        y_first: whether the numbers of a box in that JSON list are ``y1, x1, y2, x2``.

    Raises:
        UserError: ``frame`` is 0 or less, a setting of the JSON list is given with a grammar, or the grammar writes
            integers in a frame that ends at 1.

    Example:
        >>> from vr1.types import as_boxes
        >>> family = CustomFamily(frame=100, wording=Wording(one="Find {categories}."), grammar=ItemGrammar())
        >>> family.write(as_boxes([[1, 2, 30, 40]]), ["cat"])
        'cat: [1, 2, 30, 40]'
    """

    def __init__(
        self,
        frame: Frame,
        wording: Wording,
        grammar: ItemGrammar | None = None,
        markers: Sequence[str] = (),
        box_key: str = "bbox_2d",
        y_first: bool = False,
    ) -> None:
        if not isinstance(frame, str) and not frame > 0:
            raise UserError(f"family.frame={frame} must be above 0; set it to 1000, input or image")
        if grammar is not None and (y_first or box_key != "bbox_2d"):
            raise UserError(
                "family.box_key and family.y_first are settings of JSON answers; with a grammar, write the order of the"
                " numbers into grammar.box"
            )
        self._wording, self.box_key, self.y_first = wording, box_key, y_first
        self.frame, self.grammar, self.markers = frame, grammar, tuple(markers)
        if grammar is not None and not isinstance(frame, str) and frame <= 1:
            box = as_boxes([[0.1, 0.2, 0.6, 0.7]]) * frame
            if np.abs(self.read(self.write(box, ["cat"])).boxes - box).max() > 0.01 * frame:
                raise UserError(
                    f"family.grammar.box={grammar.box!r} writes {grammar.write(box, ['cat'])!r}, too coarse for"
                    f" family.frame={frame}; give the coordinates decimals, as in {{x1:.3f}}"
                )

    @property
    def wording(self) -> Wording:
        """Templates of the questions."""
        return self._wording
