"""Where in a completion the answer is: models reason, draft and explain around it."""

from vr1.types import Span

_ANSWER_START, _ANSWER_END, _THINK_START, _THINK_END = "<answer>", "</answer>", "<think>", "</think>"


def answer_region(text: str) -> Span:
    """Where in a completion the answer is: in its last ``<answer>`` region, else after its reasoning, else everywhere.

    What a closed ``</think>`` or an ``<answer>`` leaves outside is a draft, and an unfinished ``<think>`` holds no
    answer. A blank ``<answer>`` region marks nothing: some models write it after the answer.

    Args:
        text: a completion.

    Returns:
        Start and end of the region, without surrounding whitespace.

    Example:
        >>> text = "<think>maybe [1]</think> So: <answer> [2] </answer>"
        >>> start, end = answer_region(text)
        >>> text[start:end]
        '[2]'
        >>> answer_region("<think>maybe [1]")
        (0, 0)
    """
    thought = text.rfind(_THINK_END)
    start = 0 if thought < 0 else thought + len(_THINK_END)
    for begin in (start, 0):
        if (region := _tagged(text, begin)) is not None:
            return region
        # An answer inside a thought counts only where nothing follows the thought.
        if text[start:].strip():
            break
    unfinished = text.find(_THINK_START, start)
    return stripped(text, start, len(text) if unfinished < 0 else unfinished)


def _tagged(text: str, begin: int) -> Span | None:
    """The last ``<answer>`` region that starts after ``begin``; None if there is none, or a blank one."""
    start = text.rfind(_ANSWER_START, begin)
    if start < 0:
        return None
    start += len(_ANSWER_START)
    end = text.find(_ANSWER_END, start)
    region = stripped(text, start, len(text) if end < 0 else end)
    return region if region[0] < region[1] else None


def stripped(text: str, start: int, end: int, around: str | None = None) -> Span:
    """A range of a text without the characters ``around`` it (whitespace by default)."""
    part = text[start:end]
    start += len(part) - len(part.lstrip(around))
    return start, start + len(part.strip(around))
