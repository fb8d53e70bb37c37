"""How a question is worded: one text for a single category, one for several, one for a referring expression."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Wording:
    """Questions with ``{categories}`` where the categories go, or the expression.

    Args:
        one: asks for every object of one category (grounding).
        several: asks for every object of a list of categories (detection); None words it as ``one``.
        referring: asks for the one object that an expression describes; None words it as ``one``.
        between: what stands between two categories.

    Raises:
        ValueError: a text without ``{categories}``.

    Example:
        >>> Wording(one="Find every {categories}.", between=" and ").question(["cat", "dog"])
        'Find every cat and dog.'
    """

    one: str
    several: str | None = None
    referring: str | None = None
    between: str = ", "

    def __post_init__(self) -> None:
        for name, text in (("one", self.one), ("several", self.several), ("referring", self.referring)):
            if text is not None and "{categories}" not in text:
                raise ValueError(f"wording.{name}={text!r}: needs {{categories}} where the categories go")

    def question(self, categories: Sequence[str]) -> str:
        """The question for these categories."""
        text = self.several if self.several is not None and len(categories) > 1 else self.one
        return text.replace("{categories}", self.between.join(categories))

    def refer(self, expression: str) -> str:
        """The question for the one object of an expression."""
        return (self.one if self.referring is None else self.referring).replace("{categories}", expression)
