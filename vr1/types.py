"""The data classes that travel between the stages of training.

Data flows one way: record -> prompt -> rollout -> answer -> match -> reward terms -> advantage -> loss. What passes
along each arrow is one of the classes below; none of them computes anything.

Boxes are numpy arrays, since they never leave the host: a handful of boxes costs a tenth of what the same small
operations cost as torch tensors. Tokens, rewards and everything after them are torch tensors.

Shape letters: B prompts, G group size, C completion tokens, M ground-truth boxes, N predicted boxes, K matched pairs.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Boxes = NDArray[np.float64]


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
        categories: what is asked for, in the order in which the prompt names it.
        image_id: unique within its source, stable between runs.
        origin: where the record comes from (file or generator and index), for error messages and galleries.
        areas: ``[M]`` float64 object areas in square pixels, as COCO's size ranges use them.
        crowd: ``[M]`` bool, COCO's ``iscrowd``: such a region is no target and no prediction in it is an error.
        set_name: which of several data sets it belongs to; empty where there is only one.
        referring: the one category is an expression that refers to one object, such as "the man on the left".
        replaces: unreadable records in whose place this one is returned; almost always none.
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
    """What could be read from one completion, still in the model's own coordinate frame.

    Attributes:
        boxes: ``[N, 4]`` float64 corners in the family's frame, as written: ordered or not, in bounds or not.
        labels: N label texts as written.
        follows_template: the completion has the form that the family's instruction asks for, and nothing else.
        problems: one short text for each item that was written but cannot be used as a box (for logs and the gallery).
    """

    boxes: Boxes
    labels: tuple[str, ...]
    follows_template: bool
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Detections:
    """The boxes of one answer in image pixels.

    Attributes:
        boxes_xyxy: ``[N, 4]`` float64, ordered corners in pixels of the image.
        labels: N label texts.
        scores: ``[N]`` float64.
        well_formed: the template is followed.
        valid: well formed, and every item has a label and four finite, ordered, in-bounds coordinates.
        completion: the whole text that they were read from; empty where they come from elsewhere.
    """

    boxes_xyxy: Boxes
    labels: tuple[str, ...]
    scores: NDArray[np.float64]
    well_formed: bool
    valid: bool
    completion: str = ""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Match:
    """A one-to-one assignment between the predicted and the true boxes of one completion.

    Attributes:
        predicted: ``[K]`` int64 rows of the detections.
        target: ``[K]`` int64 rows of the ground truth.
        overlap: ``[K]`` float64 overlap (IoU or GIoU) that the rewards read, after the label rule.
        num_predicted: N.
        num_targets: M.
        detections: the matched detections, for terms that need more than the overlap.
        targets: the ground truth that they were matched to.
    """

    predicted: NDArray[np.int64]
    target: NDArray[np.int64]
    overlap: NDArray[np.float64]
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
        texts: B lists of G decoded completions.
        seconds: wall time by part (``prefill``, ``decode``).
        prefix: what the policy made of the prompts; None where each completion has read its own.
    """

    tokens: Tensor
    mask: Tensor
    finished: Tensor
    texts: list[list[str]]
    seconds: dict[str, float] = field(default_factory=dict)
    prefix: Prefix | None = None

    def __post_init__(self) -> None:
        assert self.tokens.shape == self.mask.shape, (self.tokens.shape, self.mask.shape)
        assert self.finished.shape == self.tokens.shape[:2], (self.finished.shape, self.tokens.shape)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prediction:
    """All that is known of one completion for one record: what galleries, tables and prediction files are made from.

    Attributes:
        record: the image and its ground truth (no boxes where there is none).
        instruction: the question as the model got it.
        completion: the answer as the model wrote it.
        detections: what was read from it, in image pixels.
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
        """Itself: a prediction stays on the host, where Lightning would move what ``predict_step`` returns to."""
        return self


def as_boxes(boxes: Any) -> Boxes:
    """Nested lists (or nothing at all) as the ``[N, 4]`` float64 array that every function here expects."""
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)


@dataclass(kw_only=True, slots=True, eq=False)
class RolloutBatch:
    """Completions with all that does not change while the policy is updated on them.

    Shape letters: B prompts, G group size, C completion tokens.

    Attributes:
        tokens: ``[B, G, C]`` int64.
        mask: ``[B, G, C]`` bool, true on tokens that count for the loss.
        advantages: ``[B, G]`` float32.
        reference_log_probs: ``[B, G, C]`` float32, or None without a reference.
        old_log_probs: ``[B, G, C]`` float32 of the policy that sampled; None until its first forward.
        prefix: what that policy made of the prompts, with its graph, for the first update alone; not stored.
    """

    tokens: Tensor
    mask: Tensor
    advantages: Tensor
    reference_log_probs: Tensor | None
    old_log_probs: Tensor | None = None
    prefix: Prefix | None = None

    def take_prefix(self) -> Prefix | None:
        """The prefix, which is good for one backward."""
        prefix, self.prefix = self.prefix, None
        return prefix

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors on the CPU for a checkpoint."""
        values = {name: getattr(self, name) for name in self.__slots__ if name != "prefix"}
        return {name: None if value is None else value.detach().cpu() for name, value in values.items()}

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device) -> "RolloutBatch":
        """The rollout batch that `state_dict` described, on ``device``."""
        moved: dict[str, Any] = {name: None if value is None else value.to(device) for name, value in state.items()}
        return cls(**moved)


@dataclass(kw_only=True, slots=True, eq=False)
class ScoredGroups:
    """The newest completions as people read them, for callbacks that show them.

    Shape letters: B prompts, G group size.

    Attributes:
        records: B records.
        instructions: B texts of the question.
        input_sizes: B (width, height) pairs, pixels of the image as the model sees it.
        texts: B lists of G completions.
        rewards: ``[B, G]`` float32, the weighted sum of the terms.
        terms: ``[B, G]`` float32 by term, before weighting.
        advantages: ``[B, G]`` float32.
    """

    records: list[DetectionRecord]
    instructions: list[str]
    input_sizes: list[tuple[int, int]]
    texts: list[list[str]]
    rewards: Tensor
    terms: dict[str, Tensor]
    advantages: Tensor

    def __len__(self) -> int:
        return len(self.records)
