"""The data classes that are passed between the stages of training.

Data flows one way: record -> prompt -> rollout -> answer -> match -> reward -> advantage -> loss. Each arrow passes one
of the classes below; none of them computes anything.

Boxes are numpy arrays, since they never leave the host: on a few boxes, operations take a tenth of the time of the same
operations on torch tensors. Tokens, rewards and everything after them are torch tensors.

Shape letters: B prompts, G group size, C completion tokens, M ground-truth boxes, N predicted boxes, K matched pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Boxes = NDArray[np.float64]

Span = tuple[int, int]
"""A range of characters of a text: the first, and the one after the last."""

SCORE = 0.99
"""The score of every box in all released evaluations of this method; `vr1.detections.box_scores` computes others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Replacement:
    """A record that cannot be read, and the one that its source returns in its place.

    Attributes:
        index: index of the unreadable record in its source; in a stream, its row.
        error: what is wrong with it: the file, the fault and how to fix it.
        used: index or row of the record that is returned instead.
    """

    index: int
    error: str
    used: int

    def __str__(self) -> str:
        """The replacement as one line of a log."""
        return f"{self.error}; record {self.used} is used in place of record {self.index} (bad_records: skip)"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DetectionRecord:
    """One image, the question asked about it, and the boxes that answer the question.

    Attributes:
        image: decoded RGB image, upright (EXIF orientation applied).
        boxes_xyxy: ``[M, 4]`` float64, corners in pixels of ``image``.
        labels: M label texts, each one of ``categories``.
        categories: the categories of the question, in the order of the prompt.
        image_id: unique within its source, stable between runs.
        origin: source of the record (file or generator, and index), for error messages and galleries.
        areas: ``[M]`` float64 object areas in square pixels, as COCO's size ranges use them.
        crowd: ``[M]`` bool, COCO's ``iscrowd``: such a region is not a target, and a prediction in it is not an error.
        set_name: name of the data set that it belongs to, of several; empty with a single one.
        referring: the single category is an expression that refers to one object, such as "the man on the left".
        replaces: unreadable records in whose place this one is returned; almost always none.
        references: further images of the prompt, such as a crop of what is sought, decoded like ``image``; no box is
            on them.
        image_first: whether ``image`` comes before them in the prompt, and not after them.
    """

    image: Image.Image
    boxes_xyxy: Boxes
    labels: tuple[str, ...]
    categories: tuple[str, ...]
    image_id: int
    origin: str
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    set_name: str = ""
    referring: bool = False
    replaces: tuple[Replacement, ...] = ()
    references: tuple[Image.Image, ...] = ()
    image_first: bool = False

    @property
    def prompt_images(self) -> list[Image.Image]:
        """All images of the prompt, in its order."""
        return [self.image, *self.references] if self.image_first else [*self.references, self.image]

    @property
    def image_size(self) -> tuple[int, int]:
        """Width and height of the image in pixels."""
        return self.image.size


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Targets:
    """Ground truth of one image: ``boxes_xyxy`` ``[M, 4]`` in image pixels and its M ``labels``."""

    boxes_xyxy: Boxes
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Answer:
    """What was parsed from one completion, still in the coordinate frame of the model family.

    Attributes:
        boxes: ``[N, 4]`` float64 corners in the family's frame, as written, not necessarily ordered or in bounds.
        labels: N label texts as written.
        follows_template: the completion has exactly the form that the family's instruction requires.
        problems: one short text for each thing that cannot be read: what it is, then a colon and the instance.
        item_spans: for each box, where its item is in the completion, label and brackets included. Of several boxes in
            one item, the first has what comes before it, the last what comes after it. The spans are in the order of
            the text and do not overlap; text between items belongs to none. Either N spans, or none from a family that
            does not record them.
        box_spans: for each box, from the first of its four numbers to the end of its last one, inside its item.
    """

    boxes: Boxes
    labels: tuple[str, ...]
    follows_template: bool
    problems: tuple[str, ...] = ()
    item_spans: tuple[Span, ...] = ()
    box_spans: tuple[Span, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Detections:
    """The boxes of one answer in image pixels.

    Attributes:
        boxes_xyxy: ``[N, 4]`` float64, ordered corners in pixels of the image.
        labels: N label texts.
        scores: ``[N]`` float64.
        well_formed: the completion follows the template.
        valid: well formed, and every item has a label and four finite, ordered, in-bounds coordinates.
        completion: the full text that they were parsed from; empty for boxes of another origin.
        item_spans: for each box, where its item is in ``completion``, as in `Answer`; N spans or none.
        box_spans: for each box, where its four numbers are in ``completion``; N spans or none.
        token_ends: for each token of ``completion`` the position in it at which the token ends; empty if not known.
        problems: what could not be read, as in `Answer`.
    """

    boxes_xyxy: Boxes
    labels: tuple[str, ...]
    scores: NDArray[np.float64]
    well_formed: bool
    valid: bool
    completion: str = ""
    item_spans: tuple[Span, ...] = ()
    box_spans: tuple[Span, ...] = ()
    token_ends: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Match:
    """A one-to-one assignment between the predicted and the true boxes of one completion.

    Attributes:
        predicted: ``[K]`` int64 rows of the detections.
        target: ``[K]`` int64 rows of the ground truth.
        overlap: ``[K]`` float64 overlap (IoU or GIoU) of each pair for the rewards, after the label rule.
        box_overlap: ``[K]`` float64, the same before the label rule: that of the boxes alone.
        num_predicted: N.
        num_targets: M.
        detections: the matched detections, for terms that need more than the overlap.
        targets: the ground truth that they were matched to.
    """

    predicted: NDArray[np.int64]
    target: NDArray[np.int64]
    overlap: NDArray[np.float64]
    box_overlap: NDArray[np.float64]
    num_predicted: int
    num_targets: int
    detections: Detections
    targets: Targets


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prefix:
    """B prompts after their prefill: all that completions need of them.

    With a graph, gradients of the completions flow back to the prompts.
    Shape letters: B prompts, P prompt tokens, K key and value heads, E width of a head, D hidden size.

    Attributes:
        keys: ``[B, K, P, E]`` of each layer, rotary positions applied.
        values: ``[B, K, P, E]`` of each layer.
        state: ``[B, D]``, the hidden state of each prompt's last token, which predicts the first of a completion.
        mask: ``[B, P]`` bool, true on tokens; prompts are padded on the left.
        next_position: ``[B]`` int64, rotary position of the token after each prompt.
    """

    keys: list[Tensor]
    values: list[Tensor]
    state: Tensor
    mask: Tensor
    next_position: Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Rollout:
    """G sampled completions for each of B prompts (shape letters: B prompts, G group size, C completion tokens).

    Attributes:
        tokens: ``[B, G, C]`` int64, padded on the right.
        mask: ``[B, G, C]`` bool, true on the sampled tokens, the closing end token included.
        finished: ``[B, G]`` bool, false where the completion was cut off at the token limit.
        log_probs: ``[B, G, C]`` float32 of the tokens, as the sampler computed them at its temperature (at 1 for greedy
            decoding) over all tokens that it may sample; 0 outside the mask.
        texts: B lists of G decoded completions.
        seconds: wall time by part (``prefill``, ``decode``).
        prefix: what the policy made of the prompts; None where each completion has read its own.
    """

    tokens: Tensor
    mask: Tensor
    finished: Tensor
    log_probs: Tensor
    texts: list[list[str]]
    seconds: dict[str, float] = field(default_factory=dict)
    prefix: Prefix | None = None

    def __post_init__(self) -> None:
        assert self.tokens.shape == self.mask.shape, (self.tokens.shape, self.mask.shape)
        assert self.tokens.shape == self.log_probs.shape, (self.tokens.shape, self.log_probs.shape)
        assert self.finished.shape == self.tokens.shape[:2], (self.finished.shape, self.tokens.shape)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prediction:
    """One completion for one record with its boxes, match and rewards, for galleries, tables and prediction files.

    Attributes:
        record: the image and its ground truth, without boxes if it has none.
        instruction: text of the question in the prompt.
        completion: text of the answer.
        detections: boxes of the answer, in image pixels.
        match: the assignment to the ground truth.
        rewards: reward by term, ``total`` included.
    """

    record: DetectionRecord
    instruction: str
    completion: str
    detections: Detections
    match: Match
    rewards: dict[str, float]

    def to(self, *_: Any, **__: Any) -> "Prediction":
        """Return itself: a prediction is on the host, to which Lightning moves what ``predict_step`` returns."""
        return self


def as_boxes(boxes: Any) -> Boxes:
    """Nested lists, or an empty one, as a ``[N, 4]`` float64 array."""
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)


@dataclass(kw_only=True, slots=True, eq=False)
class RolloutBatch:
    """Completions of a batch, with everything that stays the same while the policy is updated on them.

    Shape letters: B prompts, G group size, C completion tokens.

    Attributes:
        tokens: ``[B, G, C]`` int64.
        mask: ``[B, G, C]`` bool, true on tokens that count for the loss.
        advantages: ``[B, G]`` float32, or ``[B, G, C]`` where the tokens of a completion differ.
        sampler_log_probs: ``[B, G, C]`` float32, those of `Rollout`.
        reference_log_probs: ``[B, G, C]`` float32, or None without a reference.
        old_log_probs: ``[B, G, C]`` float32 of the policy that sampled; None until its first forward.
        prefix: what that policy made of the prompts, with its graph, for the first update alone; not stored.
        image_features: for each prompt ``[image tokens, F]`` where they are fixed, until the last update; not stored.
    """

    tokens: Tensor
    mask: Tensor
    advantages: Tensor
    sampler_log_probs: Tensor
    reference_log_probs: Tensor | None
    old_log_probs: Tensor | None = None
    prefix: Prefix | None = None
    image_features: tuple[Tensor, ...] = ()

    def take_prefix(self) -> Prefix | None:
        """The prefix, once: its graph serves a single backward pass."""
        prefix, self.prefix = self.prefix, None
        return prefix

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors on the CPU for a checkpoint."""
        values = {name: getattr(self, name) for name in self.__slots__ if name not in ("prefix", "image_features")}
        return {name: None if value is None else value.detach().cpu() for name, value in values.items()}

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device) -> "RolloutBatch":
        """The rollout batch of a `state_dict`, on ``device``."""
        moved: dict[str, Any] = {name: None if value is None else value.to(device) for name, value in state.items()}
        return cls(**moved)


@dataclass(kw_only=True, slots=True, eq=False)
class ScoredGroups:
    """The latest completions with their rewards, for callbacks that show them.

    Shape letters: B prompts, G group size.

    Attributes:
        records: B records.
        instructions: B texts of the question.
        input_sizes: B (width, height) pairs of the resized images, in pixels.
        texts: B lists of G completions.
        detections: B * G detections, as they were rewarded.
        rewards: ``[B, G]`` float32, the weighted sum of the terms.
        terms: ``[B, G]`` float32 by term, before weighting.
        advantages: ``[B, G]`` float32 of the completions.
        item_advantages: for each of B * G completions ``[N]`` float64, added to the tokens of its items; None
            where items have none of their own.
        box_advantages: the same for the tokens of the boxes' numbers.
    """

    records: list[DetectionRecord]
    instructions: list[str]
    input_sizes: list[tuple[int, int]]
    texts: list[list[str]]
    detections: Sequence[Detections]
    rewards: Tensor
    terms: dict[str, Tensor]
    advantages: Tensor
    item_advantages: Sequence[NDArray[np.float64]] | None = None
    box_advantages: Sequence[NDArray[np.float64]] | None = None

    def __len__(self) -> int:
        return len(self.records)
