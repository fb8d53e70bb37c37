"""Numbers for texts, so that label texts can travel in the numeric states of a metric."""

import hashlib
from functools import lru_cache

from vr1.matching import fold_label


@lru_cache(maxsize=4096)
def label_key(label: str) -> int:
    """The number of a label, equal for labels that compare equal.

    Example:
        >>> label_key("Cat.") == label_key("cat") != label_key("dog")
        True
    """
    return text_key(fold_label(label))


def text_key(text: str) -> int:
    """A number for a text that all processes agree on without talking, below 2**52 so that float64 holds it exactly."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 12
