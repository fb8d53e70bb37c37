"""How sure a model was of each box that it wrote: the probability of the box's own tokens.

Shape letters: N boxes, C tokens of a completion.
"""

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers.decoders import DecodeStream

from vr1.families.number import NUMBER
from vr1.records import Boxes

_NUMBER = re.compile(NUMBER)


def box_scores(
    completion: str, boxes: Boxes, ends: Sequence[int], log_probs: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A score in 0..1 for each box: the geometric mean of the probabilities of the tokens that its numbers are in.

    The tokens between the numbers count too: they are part of how the box is written, and nearly certain. A box whose
    numbers are not found in the text (a family may read a number as another than is written) gets the geometric mean
    over the whole completion.

    Args:
        completion: the answer as the model wrote it.
        boxes: ``[N, 4]`` as written, in the order of the text; which of the numbers is ``x1`` does not matter.
        ends: C positions in ``completion``, each behind the text of one token; see `token_ends`.
        log_probs: ``[C]`` log-probability of each token.

    Returns:
        ``[N]`` float64.

    Example:
        >>> from vr1.records import as_boxes
        >>> scores = box_scores("a [1,2,3,4]", as_boxes([1, 2, 3, 4]), [3, 5, 11], np.log([0.1, 0.5, 0.02]))
        >>> scores.round(3).tolist()
        [0.1]
    """
    ends = list(ends)
    everything = float(np.exp(log_probs.mean())) if len(log_probs) else 0.0
    scores = []
    for span in _spans(completion, boxes):
        if span is None:
            scores.append(everything)
            continue
        # The first token that ends behind the span's start, up to the first that reaches its end.
        first, last = bisect_left(ends, span[0] + 1), bisect_left(ends, span[1])
        own = log_probs[first : last + 1]
        scores.append(float(np.exp(own.mean())) if len(own) else everything)
    return np.asarray(scores, np.float64)


def token_ends(tokenizer: Any, tokens: Sequence[int], left_out: Collection[int]) -> list[int]:
    """For each token of a completion, how many characters of its text are written after it.

    Args:
        tokenizer: a fast tokenizer of transformers.
        tokens: C token ids.
        left_out: tokens that are not shown in the text.

    Returns:
        C positions. A character of several tokens belongs to the last of them.
    """
    stream, length, ends = DecodeStream(skip_special_tokens=False), 0, []
    for token in tokens:
        if token not in left_out:
            length += len(stream.step(tokenizer.backend_tokenizer, token) or "")
        ends.append(length)
    return ends


def _spans(completion: str, boxes: Boxes) -> list[tuple[int, int] | None]:
    """Where the four numbers of each box stand in the text, from the first's start to the last's end."""
    numbers = [(float(match[0]), match.start(), match.end()) for match in _NUMBER.finditer(completion)]
    places = defaultdict(list)
    for place in range(len(numbers) - 3):
        places[tuple(sorted(value for value, _, _ in numbers[place : place + 4]))].append(place)
    spans: list[tuple[int, int] | None] = []
    limit = len(numbers)
    # From the end, since a model that reasons first may write a box there already.
    for box in reversed(boxes.tolist()):
        found = places.get(tuple(sorted(box)), [])
        if not (index := bisect_right(found, limit - 4)):
            spans.append(None)
            continue
        limit = found[index - 1]
        spans.append((numbers[limit][1], numbers[limit + 3][2]))
    return spans[::-1]
