"""Records -> model inputs: the chat prompt of each record, tokenised and padded on the left, with its image.

Shape letters: B prompts, P prompt tokens, G group size, C completion tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

from vr1.errors import UserError
from vr1.families import Family
from vr1.types import DetectionRecord


def input_sizes(
    processor: Any, encoded: Mapping[str, Tensor], image_sizes: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Sizes of the B model inputs, read off what the processor gave.

    Args:
        processor: the model's processor.
        encoded: its output for B images: a ``[B, 3]`` grid of patches (time, rows, columns) or images of one size.
        image_sizes: B (width, height) pairs in pixels of the images as stored.

    Returns:
        B (width, height) pairs in pixels. Where an image was cut into tiles: of the canvas that they cover.
    """
    if "image_grid_thw" in encoded:
        patch = processor.image_processor.patch_size
        return [(int(columns) * patch, int(rows) * patch) for _, rows, columns in encoded["image_grid_thw"].tolist()]
    height, width = encoded["pixel_values"].shape[-2:]
    images = processor.image_processor
    if not getattr(images, "crop_to_patches", False):
        return [(width, height)] * len(image_sizes)
    canvases = [
        get_optimal_tiled_canvas((size[1], size[0]), (height, width), images.min_patches, images.max_patches)
        for size in image_sizes
    ]
    return [(columns * width, rows * height) for columns, rows in canvases]


_TYPES = ("mm_token_type_ids", "token_type_ids")
# Whatever else a processor gives belongs to the images.
_TEXT = {"input_ids", "attention_mask", "labels", "num_patches", *_TYPES}


@dataclass(kw_only=True, slots=True, eq=False)
class PromptBatch:
    """The prompts of one batch.

    Attributes:
        records: B records.
        instructions: B texts of the question.
        input_sizes: B (width, height) pairs, pixels of the image as the model sees it.
        tokens: ``[B, P]`` int64, padded on the left.
        mask: ``[B, P]`` bool, true on tokens.
        vision: the processor's image tensors (``pixel_values``, ``image_grid_thw``, ...).
        token_types: ``[B, P]`` int64, what the processor says of each token (Qwen: 0 for text and 1 for image tokens).
        types_name: what the model calls them; empty where it asks for none.
        image_tokens: B counts of image tokens.
        markers: special tokens that belong to an answer and stay in its text.
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
    markers: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.records)

    def to(self, device: Any, non_blocking: bool = False) -> "PromptBatch":
        """The same prompts on another device; Lightning calls this."""
        return replace(
            self,
            tokens=self.tokens.to(device, non_blocking=non_blocking),
            mask=self.mask.to(device, non_blocking=non_blocking),
            vision={name: value.to(device, non_blocking=non_blocking) for name, value in self.vision.items()},
            token_types=self.token_types.to(device, non_blocking=non_blocking),
        )

    def vision_of(self, row: int) -> dict[str, Tensor]:
        """The image tensors of one prompt.

        Processors lay out a batch in one of two ways: one entry an image, or as many as it has tokens, in proportion.

        Raises:
            UserError: a tensor that is laid out otherwise.
        """
        parts = {}
        for name, value in self.vision.items():
            counts = [1] * len(self)
            if len(value) != len(self):
                counts = [len(value) * tokens // sum(self.image_tokens) for tokens in self.image_tokens]
            if sum(counts) != len(value):
                raise UserError(f"{name} has {len(value)} entries, which {len(self)} prompts cannot share out")
            parts[name] = value.split(counts)[row]
        return parts


class PromptEncoder:
    """Turns records into prompts for one model.

    Args:
        processor: the model's own processor; its chat template, tokenizer and resize rule are used as they are.
        family: wording of the question.
        max_prompt_tokens: longest prompt, image tokens included.
    """

    def __init__(self, processor: Any, family: Family, max_prompt_tokens: int) -> None:
        self.processor, self.family, self.max_prompt_tokens = processor, family, max_prompt_tokens
        added = processor.tokenizer.get_added_vocab()
        self._markers = frozenset(added[marker] for marker in family.markers if marker in added)

    def __call__(self, records: Sequence[DetectionRecord]) -> PromptBatch:
        """Encode a batch.

        Raises:
            UserError: the processor refuses an image, or a prompt is longer than ``max_prompt_tokens``. It is never
                cut: that would cut image tokens.
        """
        instructions = [
            self.family.refer(record.categories[0]) if record.referring else self.family.instruction(record.categories)
            for record in records
        ]
        encoded = self._process(records, instructions)
        tokens, mask = encoded["input_ids"], encoded["attention_mask"].bool()
        self._refuse_long(records, tokens, mask)
        types_name = next((name for name in _TYPES if name in encoded), "")
        return PromptBatch(
            records=list(records),
            instructions=instructions,
            input_sizes=input_sizes(self.processor, encoded, [record.image_size for record in records]),
            tokens=tokens,
            mask=mask,
            vision={name: value for name, value in encoded.items() if name not in _TEXT and isinstance(value, Tensor)},
            token_types=encoded.get(types_name, (tokens == self.processor.image_token_id).long()),
            types_name=types_name,
            image_tokens=(tokens == self.processor.image_token_id).sum(1).tolist(),
            markers=self._markers,
        )

    def chat(self, instruction: str) -> str:
        """The prompt text: one user turn of an image and the instruction, ready for the model's answer.

        A processor without a chat template (PaliGemma's) gets the image and the instruction alone.
        """
        if self.processor.chat_template is None:
            return f"{self.processor.image_token}{instruction}"
        content = [{"type": "image"}, {"type": "text", "text": instruction}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        assert isinstance(text, str)
        return text

    def targets(
        self, prompts: PromptBatch, eos_token_id: int, order: Literal["annotated", "sorted"] = "annotated"
    ) -> tuple[Tensor, Tensor]:
        """What a model should answer, written in the family's grammar and closed by the end token.

        Args:
            prompts: B prompts.
            eos_token_id: the token that closes an answer.
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
        """What the processor makes of a batch; an error names the record that it is about."""
        try:
            return self.processor(
                text=[self.chat(instruction) for instruction in instructions],
                images=[record.image for record in records],
                padding=True,
                padding_side="left",
                return_tensors="pt",
            )
        except ValueError as error:
            if len(records) > 1:
                for record, instruction in zip(records, instructions, strict=True):
                    self._process([record], [instruction])
                raise
            width, height = records[0].image_size
            raise UserError(
                f"{records[0].origin}: the model's processor refuses the image of {width} x {height} pixels ({error});"
                " leave it out, or cut or pad it"
            ) from error

    def _refuse_long(self, records: Sequence[DetectionRecord], tokens: Tensor, mask: Tensor) -> None:
        lengths = mask.sum(1)
        worst = int(lengths.argmax())
        if lengths[worst] <= self.max_prompt_tokens:
            return
        image_tokens = int((tokens[worst] == self.processor.image_token_id).sum())
        raise UserError(
            f"{records[worst].origin}: the prompt has {int(lengths[worst])} tokens, {image_tokens} for the image"
            f", and max_prompt_tokens is {self.max_prompt_tokens}. A prompt is never cut, since that would cut image"
            " tokens: raise max_prompt_tokens, or lower max_pixels so that the image takes fewer"
        )
