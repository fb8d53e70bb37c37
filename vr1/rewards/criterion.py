"""The criterion: the thresholds that say how good an overlap, a precision or a recall has to be."""

from dataclasses import dataclass, replace
from typing import Literal

Stage = Literal["beginner", "advanced", "off"]


@dataclass(frozen=True)
class Criterion:
    """Thresholds of one stage of progressive rule refinement.

    ``f(x) = 1 if x >= xi2, 0 if x < xi1, else x``; ``xi0`` is the overlap from which a true box counts as recalled.

    Attributes:
        xi0: overlap at which a matched box counts for recall.
        xi1: below this, f is 0.
        xi2: from this on, f is 1.
        strict: reach xi2 and xi0 by ``>`` instead of ``>=``, as the released code does. What lies exactly on a
            threshold then counts as itself.

    Raises:
        ValueError: if not ``0 <= xi1 <= xi2 <= 1`` or not ``0 <= xi0 <= 1``.

    Source: Vision-R1, arXiv 2503.18013, section 3.3, Eq. 8.

    Example:
        >>> criterion = Criterion(xi0=0.5, xi1=0.5, xi2=0.75)
        >>> [criterion.f(overlap) for overlap in (0.4, 0.6, 0.8)]
        [0.0, 0.6, 1.0]
        >>> criterion.at_stage("advanced")
        Criterion(xi0=0.75, xi1=0.75, xi2=0.9, strict=False)
    """

    xi0: float = 0.5
    xi1: float = 0.5
    xi2: float = 0.75
    strict: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.xi0 <= 1:
            raise ValueError(f"Criterion(xi0={self.xi0}): the overlap for recall must lie in 0..1")
        if not 0 <= self.xi1 <= self.xi2 <= 1:
            raise ValueError(f"Criterion(xi1={self.xi1}, xi2={self.xi2}): needs 0 <= xi1 <= xi2 <= 1")

    def f(self, value: float) -> float:
        """Differentiate a value: all, nothing, or the value itself (Eq. 8)."""
        return differentiate(value, self.xi1, self.xi2, self.strict)

    def hit(self, overlap: float) -> float:
        """How far a matched box counts for recall: 1 from xi0 on, else 0."""
        return differentiate(overlap, self.xi0, self.xi0, self.strict)

    def at_stage(self, stage: Stage) -> "Criterion":
        """The thresholds of a named stage, with the comparison of this criterion."""
        return replace(STAGES[stage], strict=self.strict)


def differentiate(value: float, xi1: float, xi2: float, strict: bool = False) -> float:
    """Eq. 8: 0 below xi1, 1 from xi2 on (above it, if ``strict``), the value itself between them."""
    if value < xi1:
        return 0.0
    return 1.0 if value > xi2 or (value == xi2 and not strict) else value


STAGES: dict[Stage, Criterion] = {
    "beginner": Criterion(xi0=0.5, xi1=0.5, xi2=0.75),
    "advanced": Criterion(xi0=0.75, xi1=0.75, xi2=0.9),
    # No differentiation: f is the identity from 0 to 1. Recall still needs an overlap to count boxes at.
    "off": Criterion(xi0=0.5, xi1=0.0, xi2=1.0),
}
