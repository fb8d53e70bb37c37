"""Reads every record of a source once: the numbers to count, and what is wrong or unusual with each."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from vr1.boxes import check_boxes
from vr1.errors import UserError
from vr1.prompts import PromptEncoder
from vr1.types import Boxes, DetectionRecord

UNREADABLE = "record that cannot be read"
BAD_BOXES = "record with faulty boxes"
NO_PROMPT = "record of which the model's processor makes no prompt"
TOO_LONG = "prompt longer than model.max_prompt_tokens"
GREYSCALE = "greyscale image"
OUTSIDE = "box that reaches beyond its image"
FULL_IMAGE = "box that covers 98 % of its image or more"
NO_OBJECT = "record without an object"
LONG_ANSWER = "true answer longer than max_new_tokens, which no completion reaches"
_FULL = 0.98


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One record (shape letter: M true boxes).

    Attributes:
        origin: where it comes from.
        set_name: which of several data sets it belongs to.
        labels: M labels, crowd regions left out.
        sides: M square roots of the boxes' areas, in pixels of the image.
        input_sides: the same in pixels of the model's input.
        crowd: number of crowd regions.
        tokens: length of its prompt, image tokens included; 0 where there is none.
        answer_tokens: length of the true answer as the model would write it, with its end token.
        faults: what is wrong with it: kind and detail. Training stops at such a record, or leaves it out.
        remarks: what is unusual about it, likewise; no reason to stop.
        picture: digest of the pixels of its images; equal for equal images.
        question: the categories that its prompt names.
        boxes: M boxes in pixels of the image.
        images: number of images of its prompt.
    """

    origin: str
    set_name: str = ""
    labels: tuple[str, ...] = ()
    sides: tuple[float, ...] = ()
    input_sides: tuple[float, ...] = ()
    crowd: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    faults: tuple[tuple[str, str], ...] = ()
    remarks: tuple[tuple[str, str], ...] = ()
    picture: bytes = b""
    question: tuple[str, ...] = ()
    boxes: tuple[tuple[float, ...], ...] = ()
    images: int = 1


class _Rows(Dataset[Row]):
    """Rows by index, so that a loader's workers share the reading."""

    def __init__(self, source: Any, encoder: PromptEncoder, limit: int, answer_limit: int | None) -> None:
        self.source, self.encoder, self.limit, self.answer_limit = source, encoder, limit, answer_limit

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Row:
        try:
            record = self.source[index]
        except UserError as error:
            return Row(origin=f"record {index}", faults=((UNREADABLE, str(error)),))
        if record.replaces:
            # The record that takes its place has a row of its own.
            return Row(origin=f"record {index}", faults=((UNREADABLE, record.replaces[0].error),))
        try:
            check_boxes(record)
        except UserError as error:
            return Row(origin=record.origin, set_name=record.set_name, faults=((BAD_BOXES, str(error)),))
        try:
            prompts = self.encoder([record])
        except UserError as error:
            return Row(origin=record.origin, set_name=record.set_name, faults=((NO_PROMPT, str(error)),))
        rows = ~record.crowd
        boxes = record.boxes_xyxy[rows]
        sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1))
        (width, height), (input_width, input_height) = record.image_size, prompts.input_sizes[0]
        scale = (input_width * input_height / (width * height)) ** 0.5
        tokens = int(prompts.mask.sum())
        long = ((TOO_LONG, f"{record.origin}: {tokens} of {self.limit} tokens"),) if tokens > self.limit else ()
        # Which token ends an answer does not change its length.
        answer = int(self.encoder.targets(prompts, 0)[1].sum())
        remarks = list(_remarks(record, boxes))
        if self.answer_limit is not None and answer > self.answer_limit:
            remarks.append((LONG_ANSWER, f"{record.origin}: {answer} of {self.answer_limit} tokens"))
        return Row(
            origin=record.origin,
            set_name=record.set_name,
            labels=tuple(label for label, counts in zip(record.labels, rows, strict=True) if counts),
            sides=tuple(sides.tolist()),
            input_sides=tuple((sides * scale).tolist()),
            crowd=int(record.crowd.sum()),
            tokens=tokens,
            answer_tokens=answer,
            faults=long,
            remarks=tuple(remarks),
            picture=_digest(record),
            question=record.categories,
            boxes=tuple(map(tuple, boxes.tolist())),
            images=len(record.prompt_images),
        )


def _digest(record: DetectionRecord) -> bytes:
    """A digest of the pixels of all images of a prompt."""
    digest = hashlib.blake2b(digest_size=16)
    for image in record.prompt_images:
        digest.update(repr(image.size).encode() + image.tobytes())
    return digest.digest()


def _remarks(record: DetectionRecord, boxes: Boxes) -> Iterator[tuple[str, str]]:
    if is_greyscale(record.image):
        yield GREYSCALE, record.origin
    if not len(record.labels):
        yield NO_OBJECT, record.origin
    width, height = record.image_size
    for x1, y1, x2, y2 in boxes.tolist():
        # Annotations often end one pixel beyond.
        if min(x1, y1) < -1 or x2 > width + 1 or y2 > height + 1:
            yield OUTSIDE, f"{record.origin}: box {x1:g}, {y1:g}, {x2:g}, {y2:g} on {width} x {height}"
        if (x2 - x1) * (y2 - y1) >= _FULL * width * height:
            yield FULL_IMAGE, f"{record.origin}: box {x1:g}, {y1:g}, {x2:g}, {y2:g} on {width} x {height}"


def is_greyscale(image: Image.Image) -> bool:
    """Whether red, green and blue are the same in every pixel of an RGB image.

    Example:
        >>> is_greyscale(Image.new("RGB", (4, 2), (9, 9, 9))), is_greyscale(Image.new("RGB", (4, 2), (9, 9, 8)))
        (True, False)
    """
    red, green, blue = (band.tobytes() for band in image.split())
    return red == green == blue


def read_rows(
    source: Any, encoder: PromptEncoder, limit: int, answer_limit: int | None, num_workers: int
) -> Iterator[Row]:
    """Read every record of a source once, image and all.

    Args:
        source: records by index.
        encoder: the model's, without a limit: prompts are made as in training.
        limit: longest prompt that training takes, in tokens; a longer one is a fault.
        answer_limit: longest completion, in tokens; a true answer that is longer is a remark. None: no limit.
        num_workers: processes that read.
    """
    yield from DataLoader(_Rows(source, encoder, limit, answer_limit), batch_size=None, num_workers=num_workers)
