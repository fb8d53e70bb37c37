"""From a completion to detections: boxes in image pixels, whether the answer is valid, and a score for each box.

Shape letters: N predicted boxes, C tokens of a completion.
"""

from bisect import bisect_left
from collections.abc import Collection, Sequence
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers.decoders import DecodeStream

from vr1.boxes import BoxRules
from vr1.families import Family
from vr1.types import SCORE, Boxes, Detections, Span

_DEFAULT_RULES = BoxRules()


def read_detections(
    completion: str,
    family: Family,
    image_size: tuple[int, int],
    input_size: tuple[int, int],
    rules: BoxRules | None = None,
    categories: Sequence[str] = (),
) -> Detections:
    """Parse a completion into boxes in image pixels. No completion raises an error.

    An answer with boxes that are outside the image or have swapped corners is not ``valid``; by default they are
    clipped and sorted, so that they count for recall and precision.

    Args:
        completion: the text as the model wrote it.
        family: form of the answer and coordinate frame.
        image_size: width and height of the image in pixels.
        input_size: width and height in pixels of the image as the model saw it.
        rules: what becomes of such boxes.
        categories: those of the question. A box without a label has the only one, if the family says so
            (``implies_label``).

    Returns:
        N detections, each with the score `SCORE`.

    Source: Vision-R1, arXiv 2503.18013, Eq. 4 (content of the dual format reward).

    Example:
        >>> from vr1.families import Qwen25VL
        >>> text = '[{"bbox_2d": [30, 2, 10, 400], "label": "cat"}]'
        >>> detections = read_detections(text, Qwen25VL(), image_size=(200, 400), input_size=(100, 200))
        >>> detections.boxes_xyxy.tolist(), detections.well_formed, detections.valid
        ([[20.0, 4.0, 60.0, 400.0]], True, False)
    """
    answer = family.read(completion)
    rules = rules or _DEFAULT_RULES
    size = family.frame_size(image_size, input_size)
    boxes, labels = answer.boxes, answer.labels
    if family.implies_label and len(categories) == 1:
        labels = tuple(label or categories[0] for label in labels)
    item_spans, box_spans = answer.item_spans, answer.box_spans
    complete = answer.follows_template and not answer.problems
    inside = _in_frame(boxes, np.array(size))
    if not inside or rules.whole_numbers:
        # Before the change of frame, in which a coordinate of 1e308 would overflow.
        boxes, remain = rules(boxes, size)
        rows: list[bool] = remain.tolist()
        labels = tuple(compress(labels, rows))
        # A family that records no spans has none to choose from.
        item_spans, box_spans = tuple(compress(item_spans, rows)), tuple(compress(box_spans, rows))
    return Detections(
        boxes_xyxy=family.to_image(boxes, image_size, input_size),
        labels=labels,
        scores=np.full(len(labels), SCORE),
        well_formed=answer.follows_template,
        valid=complete and inside and all(map(str.strip, labels)),
        completion=completion,
        item_spans=item_spans,
        box_spans=box_spans,
        problems=answer.problems,
    )


def _in_frame(boxes: Boxes, frame: Boxes) -> bool:
    """Whether all boxes ``[N, 4]`` are finite, have ``x1 < x2`` and ``y1 < y2``, and are inside ``0..frame``."""
    top_left, bottom_right = boxes[:, :2], boxes[:, 2:]
    ordered = (top_left < bottom_right).all()
    return bool(ordered and (top_left >= 0).all() and (bottom_right <= frame).all())


def box_scores(
    box_spans: Sequence[Span | None], ends: Sequence[int], log_probs: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A score in 0..1 for each box: the geometric mean of the probabilities of its tokens.

    Its tokens are those from its first number to its last, separators included. A box without a known position gets
    the geometric mean over the full completion.

    Args:
        box_spans: for each of N boxes, where its numbers are in the completion (`Answer.box_spans`), or None.
        ends: C positions in the completion, the end of the text of each token; see `token_ends`.
        log_probs: ``[C]`` log-probability of each token.

    Returns:
        ``[N]`` float64.

    Example:
        >>> from vr1.families import Griffon
        >>> answer = Griffon().read("a-[1,2,3,4]")
        >>> answer.box_spans
        ((3, 10),)
        >>> box_scores(answer.box_spans, [3, 5, 11], np.log([0.1, 0.5, 0.02])).round(3).tolist()
        [0.1]
    """
    ends = list(ends)
    full_score = float(np.exp(log_probs.mean())) if len(log_probs) else 0.0
    scores = []
    for span in box_spans:
        if span is None:
            scores.append(full_score)
            continue
        own = log_probs[tokens_of(span, ends)]
        scores.append(float(np.exp(own.mean())) if len(own) else full_score)
    return np.asarray(scores, np.float64)


def tokens_of(span: Span, ends: Sequence[int]) -> slice:
    """The tokens of a range of the text: from the first that ends after its start to the first that reaches its end.

    Args:
        span: the range.
        ends: positions in the text at which its tokens end, ascending; see `token_ends`.

    Example:
        >>> tokens_of((2, 5), [1, 3, 4, 6, 8])
        slice(1, 4, None)
    """
    return slice(bisect_left(ends, span[0] + 1), bisect_left(ends, span[1]) + 1)


def token_ends(tokenizer: Any, tokens: Sequence[int], left_out: Collection[int]) -> list[int]:
    """For each token of a completion, the position in the text at which it ends.

    Args:
        tokenizer: a fast tokenizer of transformers.
        tokens: C token ids.
        left_out: tokens that are not part of the text.

    Returns:
        C positions. A character that is made of several tokens belongs to the last of them.
    """
    stream, length, ends = DecodeStream(skip_special_tokens=False), 0, []
    for token in tokens:
        if token not in left_out:
            length += len(stream.step(tokenizer.backend_tokenizer, token) or "")
        ends.append(length)
    return ends
