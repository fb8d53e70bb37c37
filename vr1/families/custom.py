"""A family defined by settings, for models without a class of their own."""

from collections.abc import Sequence

from vr1.boxes import Frame
from vr1.errors import UserError
from vr1.families.base import Family, Wording
from vr1.families.item_grammar import ItemGrammar


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

    Args:
        frame: unit of the coordinates: pixels of the model's ``input``, pixels of the ``image``, or the number that
            both axes end at. There is no default, since a wrong frame gives wrong boxes without an error.
        wording: templates of the questions.
        grammar: templates of an answer; None for a JSON list of ``bbox_2d`` and ``label``.
        markers: special tokens that are part of an answer.

    Raises:
        UserError: ``frame`` is 0 or less.

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
    ) -> None:
        if not isinstance(frame, str) and not frame > 0:
            raise UserError(f"family.frame={frame} must be above 0; set it to 1000, input or image")
        self._wording = wording
        self.frame, self.grammar, self.markers = frame, grammar, tuple(markers)

    @property
    def wording(self) -> Wording:
        """Templates of the questions."""
        return self._wording
