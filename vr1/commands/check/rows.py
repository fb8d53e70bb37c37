"""What a check keeps of each record: numbers and, where something is wrong, words."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from vr1.errors import UserError
from vr1.prompts import PromptEncoder


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One record (shape letter: M true boxes).

    Attributes:
        origin: where it comes from.
        set_name: which of several data sets it belongs to.
        labels: M labels, crowd regions left out.
        sides: M square roots of the boxes' areas, in pixels of the image.
        seen_sides: the same in pixels of the model's input.
        crowd: number of crowd regions.
        tokens: length of its prompt, image tokens included.
        faults: what is wrong with it, kind and detail.
    """

    origin: str
    set_name: str = ""
    labels: tuple[str, ...] = ()
    sides: tuple[float, ...] = ()
    seen_sides: tuple[float, ...] = ()
    crowd: int = 0
    tokens: int = 0
    faults: tuple[tuple[str, str], ...] = ()


class _Rows(Dataset[Row]):
    """Rows by index, so that a loader's workers share the reading."""

    def __init__(self, source: Any, encoder: PromptEncoder, limit: int) -> None:
        self.source, self.encoder, self.limit = source, encoder, limit

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Row:
        try:
            record = self.source[index]
        except UserError as error:
            return Row(origin=f"record {index}", faults=(("record that cannot be read", str(error)),))
        faults = [("record that cannot be read, replaced by the next one", item.error) for item in record.replaces]
        try:
            prompts = self.encoder([record])
        except UserError as error:
            faults.append(("record of which the model's processor makes no prompt", str(error)))
            return Row(origin=record.origin, set_name=record.set_name, faults=tuple(faults))
        rows = ~record.crowd
        boxes = record.boxes_xyxy[rows]
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        (width, height), (seen_width, seen_height) = record.image_size, prompts.input_sizes[0]
        scale = (seen_width * seen_height / (width * height)) ** 0.5
        tokens = int(prompts.mask.sum())
        if tokens > self.limit:
            faults.append(("prompt longer than max_prompt_tokens", f"{record.origin}: {tokens} of {self.limit} tokens"))
        return Row(
            origin=record.origin,
            set_name=record.set_name,
            labels=tuple(label for label, kept in zip(record.labels, rows, strict=True) if kept),
            sides=tuple(np.sqrt(areas).tolist()),
            seen_sides=tuple((np.sqrt(areas) * scale).tolist()),
            crowd=int(record.crowd.sum()),
            tokens=tokens,
            faults=tuple(faults),
        )


def read_rows(source: Any, encoder: PromptEncoder, limit: int, num_workers: int) -> Iterator[Row]:
    """Read every record of a source once, image and all.

    Args:
        source: records by index.
        encoder: the model's, without a limit: prompts are made as in training.
        limit: longest prompt that training would take, in tokens; those above it are told.
        num_workers: processes that read.
    """
    yield from DataLoader(_Rows(source, encoder, limit), batch_size=None, num_workers=num_workers)
