"""One thing that was looked at."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What was found of one thing.

    Attributes:
        what: the thing.
        told: what was found.
        state: ``fault`` where a training cannot work or will not end well, ``note`` where it could do better.
        mend: what to do about it; empty where all is well.

    Example:
        >>> print(Observation(what="disk", told="3 GiB free", state="note", mend="a 7B checkpoint takes 15 GiB"))
        note   disk: 3 GiB free; a 7B checkpoint takes 15 GiB
    """

    what: str
    told: str
    state: Literal["ok", "note", "fault"] = "ok"
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.state:6} {self.what}: {self.told}{f'; {self.mend}' if self.mend else ''}"
