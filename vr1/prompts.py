"""From records to model inputs: the chat prompt of each record with its image, tokenised and padded on the left.

Shape letters: B prompts, P prompt tokens, G group size, C completion tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

from vr1.boxes import check_boxes
from vr1.errors import UserError
from vr1.families import Family
from vr1.types import DetectionRecord


def input_sizes(
    processor: Any, encoded: Mapping[str, Tensor], image_sizes: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Sizes of the B images as the processor resized them.

    Args:
        processor: the model's processor.
        encoded: its output for B images: a ``[B, 3]`` grid of patches (time, rows, columns), the ``[B, patches, 2]``
            column and row of each patch, or images of one size.
        image_sizes: B (width, height) pairs in pixels of the images as stored.

    Returns:
        B (width, height) pairs in pixels. For an image that was split into tiles: the size of all tiles together.
    """
    if "image_grid_thw" in encoded:
        patch = processor.image_processor.patch_size
        return [(int(columns) * patch, int(rows) * patch) for _, rows, columns in encoded["image_grid_thw"].tolist()]
    if "image_position_ids" in encoded:
        patch = processor.image_processor.patch_size
        last = encoded["image_position_ids"].amax(1) + 1
        return [(columns * patch, rows * patch) for columns, rows in last.tolist()]
    height, width = encoded["pixel_values"].shape[-2:]
    images = processor.image_processor
    if not getattr(images, "crop_to_patches", False):
        return [(width, height)] * len(image_sizes)
    canvases = [
        get_optimal_tiled_canvas((size[1], size[0]), (height, width), images.min_patches, images.max_patches)
        for size in image_sizes
    ]
    return [(columns * width, rows * height) for columns, rows in canvases]


# Sizes that a processor may refuse: Qwen's takes a side up to 200 times the other.
_UNUSUAL_SHAPE, _UNUSUAL_SIDE = 20, 32
_TYPES = ("mm_token_type_ids", "token_type_ids")
# All other tensors of a processor's output belong to the images.
_TEXT = {"input_ids", "attention_mask", "labels", "num_patches", "num_soft_tokens_per_image", *_TYPES}


@dataclass(kw_only=True, slots=True, eq=False)
class PromptBatch:
    """The prompts of one batch.

    Attributes:
        records: B records.
        instructions: B texts of the question.
        input_sizes: B (width, height) pairs in pixels of the image as the model sees it.
        tokens: ``[B, P]`` int64, padded on the left.
        mask: ``[B, P]`` bool, true on tokens.
        vision: the processor's image tensors (``pixel_values``, ``image_grid_thw``, ...).
        token_types: ``[B, P]`` int64, the type of each token as the processor gives it (Qwen: 0 text, 1 image).
        types_name: name of this argument of the model; empty where it takes none.
        image_tokens: B counts of image tokens.
        image_counts: B counts of images; the boxes are on the one that the record names.
        markers: special tokens that are part of an answer and stay in its text.
        following: on the first batch of an optimizer step, its other batches, in order: completions of all of them are
            sampled together. They stay on the host when this batch moves.
        image_features: for each prompt ``[image tokens, F]``, where they are computed in advance for all forwards of a
            step (`vr1.policy.policy.Policy.with_image_features`); empty where each forward computes its own.
    """

    records: list[DetectionRecord]
    instructions: list[str]
    input_sizes: list[tuple[int, int]]
    tokens: Tensor
    mask: Tensor
    vision: dict[str, Tensor]
    token_types: Tensor
    types_name: str
    image_tokens: list[int]
    image_counts: list[int]
    markers: frozenset[int] = frozenset()
    following: Sequence["PromptBatch"] = ()
    image_features: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def to(self, device: Any, non_blocking: bool = False) -> "PromptBatch":
        """The same prompts on another device. Lightning calls this."""
        return replace(
            self,
            tokens=self.tokens.to(device, non_blocking=non_blocking),
            mask=self.mask.to(device, non_blocking=non_blocking),
            vision={name: value.to(device, non_blocking=non_blocking) for name, value in self.vision.items()},
            token_types=self.token_types.to(device, non_blocking=non_blocking),
            image_features=tuple(image.to(device, non_blocking=non_blocking) for image in self.image_features),
        )

    def vision_of(self, row: int) -> dict[str, Tensor]:
        """The image tensors of one prompt.

        A tensor has one row for each image, or rows in proportion to the prompt's image tokens.

        Raises:
            UserError: a tensor of another layout.
        """
        parts = {}
        for name, value in self.vision.items():
            counts = self.image_counts
            if len(value) != sum(self.image_counts):
                counts = [len(value) * tokens // sum(self.image_tokens) for tokens in self.image_tokens]
            if sum(counts) != len(value):
                raise UserError(f"{name} has {len(value)} entries, which cannot be split among {len(self)} prompts")
            parts[name] = value.split(counts)[row]
        return parts


class PromptEncoder:
    """Encodes records as prompts of one model.

    Args:
        processor: the model's own processor, which resizes the image and has chat template and tokenizer.
        family: the questions.
        max_prompt_tokens: length of the longest prompt, image tokens included.
    """

    def __init__(self, processor: Any, family: Family, max_prompt_tokens: int) -> None:
        self.processor, self.family, self.max_prompt_tokens = processor, family, max_prompt_tokens
        added = processor.tokenizer.get_added_vocab()
        self._refusals: dict[tuple[int, int], str | None] = {}
        self._input_sizes: dict[tuple[int, int], tuple[int, int]] = {}
        self._markers = frozenset(added[marker] for marker in family.markers if marker in added)

    def __call__(self, records: Sequence[DetectionRecord]) -> PromptBatch:
        """Encode a batch.

        Raises:
            UserError: the true boxes of a record are faulty, the processor refuses an image, or a prompt is longer than
                ``max_prompt_tokens``. Prompts are never truncated, since that would remove image tokens.
        """
        for record in records:
            check_boxes(record)
        instructions = [
            self.family.refer(record.categories[0]) if record.referring else self.family.instruction(record.categories)
            for record in records
        ]
        encoded = self._process(records, instructions)
        tokens, mask = encoded["input_ids"], encoded["attention_mask"].bool()
        self._check_lengths(records, tokens, mask)
        types_name = next((name for name in _TYPES if name in encoded), "")
        return PromptBatch(
            records=list(records),
            instructions=instructions,
            input_sizes=self._input_sizes_of(encoded, records),
            tokens=tokens,
            mask=mask,
            vision={name: value for name, value in encoded.items() if name not in _TEXT and isinstance(value, Tensor)},
            token_types=encoded.get(types_name, (tokens == self.processor.image_token_id).long()),
            types_name=types_name,
            image_tokens=(tokens == self.processor.image_token_id).sum(1).tolist(),
            image_counts=[len(record.prompt_images) for record in records],
            markers=self._markers,
        )

    def first_of_step(self, batches: Sequence[PromptBatch]) -> PromptBatch:
        """The first of the batches of one optimizer step, which carries the others."""
        return replace(batches[0], following=batches[1:])

    def refusal(self, image_size: tuple[int, int]) -> str | None:
        """Why the model's processor refuses images of a size, as some refuse long and narrow ones; None if it does not.

        Only images of an unusual shape are tried, each as a blank one.

        Args:
            image_size: width and height in pixels.
        """
        if max(image_size) < _UNUSUAL_SHAPE * min(image_size) and min(image_size) >= _UNUSUAL_SIDE:
            return None
        if image_size not in self._refusals:
            try:
                self.processor.image_processor(images=[Image.new("RGB", image_size)], return_tensors="pt")
                self._refusals[image_size] = None
            except ValueError as error:
                self._refusals[image_size] = " ".join(str(error).split())
        return self._refusals[image_size]

    def input_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """The size to which the model's processor resizes an image.

        Args:
            image_size: width and height in pixels.

        Returns:
            Width and height in pixels; for an image that is split into tiles, of all tiles together.

        Raises:
            UserError: the processor refuses such an image.
        """
        if image_size not in self._input_sizes:
            try:
                encoded = self.processor.image_processor(images=[Image.new("RGB", image_size)], return_tensors="pt")
            except ValueError as error:
                raise UserError(
                    f"the model's processor refuses an image of {image_size[0]} x {image_size[1]} pixels ({error});"
                    " remove, crop or pad it"
                ) from error
            [self._input_sizes[image_size]] = input_sizes(self.processor, encoded, [image_size])
        return self._input_sizes[image_size]

    def chat(self, instruction: str, images: int = 1) -> str:
        """The prompt text: one user message of images and the instruction, and the start of the model's answer.

        Without a chat template (PaliGemma) it is the image token and the instruction.

        Args:
            instruction: the question.
            images: number of images.

        Raises:
            UserError: several images, of which a model without a chat template takes one.
        """
        if self.processor.chat_template is None:
            if images > 1:
                raise UserError(f"{images} images in one prompt: this model takes one; choose another model or data")
            return f"{self.processor.image_token}{instruction}"
        content = [{"type": "image"}] * images + [{"type": "text", "text": instruction}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        assert isinstance(text, str)
        return text

    def targets(
        self, prompts: PromptBatch, eos_token_id: int, order: Literal["annotated", "sorted"] = "annotated"
    ) -> tuple[Tensor, Tensor]:
        """The correct answers, written as the family's models would write them, with the end token.

        Args:
            prompts: B prompts.
            eos_token_id: the token that ends an answer.
            order: boxes as annotated, or sorted by their left edge (then the top).

        Returns:
            Tokens ``[B, 1, C]`` int64 padded on the right, and their mask ``[B, 1, C]`` bool.
        """
        rows = []
        for record, input_size in zip(prompts.records, prompts.input_sizes, strict=True):
            visible = np.flatnonzero(~record.crowd)
            if order == "sorted":
                visible = visible[np.lexsort(record.boxes_xyxy[visible].T[[1, 0]])]
            boxes = self.family.from_image(record.boxes_xyxy[visible], record.image_size, input_size)
            text = self.family.write(boxes, [record.labels[row] for row in visible])
            ids = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
            rows.append(torch.tensor([*ids, eos_token_id]))
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=eos_token_id)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(tokens.shape[1])[None] < lengths[:, None]
        return tokens[:, None].to(prompts.tokens.device), mask[:, None].to(prompts.tokens.device)

    def _process(self, records: Sequence[DetectionRecord], instructions: Sequence[str]) -> Any:
        """The processor's output for a batch. An error names the record."""
        try:
            return self.processor(
                text=[
                    self.chat(instruction, len(record.prompt_images))
                    for record, instruction in zip(records, instructions, strict=True)
                ],
                # A list for each prompt: some processors take a flat list for the images of one prompt.
                images=[record.prompt_images for record in records],
                padding=True,
                padding_side="left",
                return_tensors="pt",
            )
        except ValueError as error:
            if len(records) > 1:
                for record, instruction in zip(records, instructions, strict=True):
                    self._process([record], [instruction])
                raise
            if isinstance(error, UserError):
                raise UserError(f"{records[0].origin}: {error}") from error
            sizes = " and ".join(
                f"{width} x {height}" for width, height in (one.size for one in records[0].prompt_images)
            )
            raise UserError(
                f"{records[0].origin}: the model's processor refuses the image of {sizes} pixels ({error});"
                " remove, crop or pad it"
            ) from error

    def _input_sizes_of(self, encoded: Any, records: Sequence[DetectionRecord]) -> list[tuple[int, int]]:
        """The input size of the image of each record that its boxes are on."""
        sizes = iter(
            input_sizes(self.processor, encoded, [image.size for record in records for image in record.prompt_images])
        )
        own = [[next(sizes) for _ in record.prompt_images] for record in records]
        return [parts[0 if record.image_first else -1] for parts, record in zip(own, records, strict=True)]

    def _check_lengths(self, records: Sequence[DetectionRecord], tokens: Tensor, mask: Tensor) -> None:
        lengths = mask.sum(1)
        longest = int(lengths.argmax())
        if lengths[longest] <= self.max_prompt_tokens:
            return
        image_tokens = int((tokens[longest] == self.processor.image_token_id).sum())
        raise UserError(
            f"{records[longest].origin}: the prompt has {int(lengths[longest])} tokens, {image_tokens} for the image"
            f", and max_prompt_tokens is {self.max_prompt_tokens}. Prompts are never truncated, since that would"
            " remove image tokens: raise max_prompt_tokens, or lower max_pixels so that the image takes fewer"
        )
