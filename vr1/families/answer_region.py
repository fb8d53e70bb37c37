"""Which part of a completion is the answer, where a model reasons in front of it."""

from collections.abc import Callable

_ANSWER_START, _ANSWER_END, _THINK_END = "<answer>", "</answer>", "</think>"


def answer_region(whole: str, holds_answer: Callable[[str], object]) -> str:
    """The part of a completion that holds the answer; ``whole`` itself where nothing marks a part.

    An ``<answer>`` region wins over everything outside it; else what follows ``</think>`` counts.

    Args:
        whole: a completion without blanks around it.
        holds_answer: whether a text may hold a box. Some models put the answer in front of an empty answer region.

    Example:
        >>> answer_region("<think>maybe [1]</think><answer> [2] </answer>", lambda text: "[" in text)
        '[2]'
    """
    start = whole.rfind(_ANSWER_START)
    if start >= 0:
        start += len(_ANSWER_START)
        end = whole.find(_ANSWER_END, start)
        region = whole[start:] if end < 0 else whole[start:end]
        if holds_answer(region):
            return region.strip()
    return whole.rpartition(_THINK_END)[2].strip() if _THINK_END in whole else whole
