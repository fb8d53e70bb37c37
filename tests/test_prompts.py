"""Prompts against what the processor itself makes of an image, and answers that are written and read back."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GotOcr2ImageProcessor

from vr1.families import Qwen25VL
from vr1.policy import PolicySource
from vr1.prompts import PromptEncoder, input_sizes
from vr1.types import as_boxes

SIZES = [(112, 112), (200, 40), (37, 91), (640, 425), (30, 30)]


@pytest.fixture
def of_sizes(records):
    """One record repeated with pictures of many sizes."""

    def make(sizes):
        return [replace(records[0], image=records[0].image.resize(size)) for size in sizes]

    return make


def test_input_sizes_are_those_of_the_pixels(encoder, of_sizes):
    prompts = encoder(of_sizes(SIZES))
    rows = prompts.vision["image_grid_thw"].prod(1).tolist()
    patches = prompts.vision["pixel_values"].split(rows)
    image_processor = encoder.processor.image_processor
    for (width, height), patch_rows, size in zip(prompts.input_sizes, patches, SIZES, strict=True):
        assert len(patch_rows) == (width // image_processor.patch_size) * (height // image_processor.patch_size)
        alone = image_processor(images=[Image.new("RGB", size)], return_tensors="pt")["image_grid_thw"][0]
        assert (height, width) == tuple((alone[1:] * image_processor.patch_size).tolist())
        assert image_processor.size["shortest_edge"] <= width * height <= image_processor.size["longest_edge"]


@pytest.mark.parametrize(("columns", "rows"), [(2, 1), (1, 2), (3, 1), (1, 3), (2, 3), (3, 2)])
def test_tiles_lie_as_the_processor_cuts_them(columns, rows):
    tile, levels = 40, np.arange(columns * rows).reshape(rows, columns) * 40
    image = Image.fromarray(levels.repeat(tile, 0).repeat(tile, 1).astype(np.uint8)).convert("RGB")
    processor = GotOcr2ImageProcessor(
        size={"height": tile, "width": tile}, crop_to_patches=True, max_patches=6, do_normalize=False
    )
    encoded = processor([image], return_tensors="pt")
    # Row by row, each of one level; a small image of the whole follows them.
    tiles = encoded["pixel_values"][: columns * rows].flatten(1) * 255
    assert tiles.mean(1).tolist() == pytest.approx(levels.ravel().tolist(), abs=0.1)
    assert float((tiles.amax(1) - tiles.amin(1)).max()) < 0.1
    [size] = input_sizes(SimpleNamespace(image_processor=processor), encoded, [image.size])
    assert size == (columns * tile, rows * tile)


def test_an_image_that_the_processor_refuses_is_named(encoder, of_sizes):
    fine, thin = of_sizes([(112, 112), (1200, 4)])
    with pytest.raises(ValueError, match=r"scene third: the model's processor refuses the image of 1200 x 4 pixels"):
        encoder([fine, fine, replace(thin, origin="scene third")])


def test_each_merged_patch_is_one_image_token(encoder, of_sizes):
    prompts = encoder(of_sizes(SIZES))
    merge = encoder.processor.image_processor.merge_size
    tokens = (prompts.tokens == encoder.processor.image_token_id).sum(1)
    assert tokens.tolist() == (prompts.vision["image_grid_thw"].prod(1) // merge**2).tolist()
    assert tokens.tolist() == (prompts.token_types == 1).sum(1).tolist()


def test_a_batch_holds_what_its_prompts_are_alone(encoder, records):
    prompts = encoder(records)
    for row, record in enumerate(records):
        alone = encoder([record])
        assert prompts.tokens[row][prompts.mask[row]].tolist() == alone.tokens[0].tolist()
        assert alone.mask.all()
    assert not prompts.mask.all(), "these prompts are of one length"
    assert prompts.mask[:, -1].all(), "padding belongs on the left"


def test_the_question_is_in_the_prompt(encoder, records):
    prompts = encoder(records)
    for instruction, tokens, record in zip(prompts.instructions, prompts.tokens, records, strict=True):
        assert instruction in encoder.processor.tokenizer.decode(tokens)
        assert all(name in instruction for name in record.categories)


def read_back(encoder, prompts, tokens, mask):
    """Boxes in image pixels and labels of the written answers."""
    for row, record in enumerate(prompts.records):
        text = encoder.processor.tokenizer.decode(tokens[row, 0][mask[row, 0]], skip_special_tokens=True)
        answer = encoder.family.read(text)
        assert answer.follows_template
        yield record, answer, encoder.family.to_image(answer.boxes, record.image_size, prompts.input_sizes[row])


@pytest.mark.parametrize("order", ["annotated", "sorted"])
def test_written_answers_read_back_as_the_ground_truth(encoder, records, order):
    records = [replace(record, image=record.image.resize((record.image_size[0] * 3, 200))) for record in records]
    prompts = encoder(records)
    tokens, mask = encoder.targets(prompts, eos_token_id=2, order=order)
    for (record, answer, boxes), (width, height) in zip(
        read_back(encoder, prompts, tokens, mask), prompts.input_sizes, strict=True
    ):
        rows = np.arange(len(record.labels))
        if order == "sorted":
            rows = np.array(sorted(rows, key=lambda row: (record.boxes_xyxy[row][0], record.boxes_xyxy[row][1])))
        # Rounding to integer pixels of the model's input moves a corner by at most half a pixel.
        unit = np.tile([record.image_size[0] / width, record.image_size[1] / height], 2)
        assert (np.abs(boxes - record.boxes_xyxy[rows]) <= 0.5 * unit + 1e-9).all()
        assert answer.labels == tuple(record.labels[row] for row in rows)


def test_crowd_regions_are_not_written(encoder, records):
    record = replace(
        records[0],
        boxes_xyxy=as_boxes([[30, 10, 60, 40], [0, 0, 90, 90], [5, 5, 20, 20]]),
        labels=("a", "crowd", "b"),
        areas=np.ones(3),
        crowd=np.array([False, True, False]),
    )
    prompts = encoder([record])
    for order, labels in (("annotated", ("a", "b")), ("sorted", ("b", "a"))):
        tokens, mask = encoder.targets(prompts, eos_token_id=2, order=order)
        [(_, answer, _)] = read_back(encoder, prompts, tokens, mask)
        assert answer.labels == labels


def test_every_answer_ends_once(encoder, records):
    tokens, mask = encoder.targets(encoder(records), eos_token_id=2)
    for row, real in zip(tokens[:, 0], mask[:, 0], strict=True):
        assert row[real][-1] == 2
        assert (row[real] == 2).sum() == 1
        assert (real.long().diff() <= 0).all(), "padding belongs on the right"


def test_long_prompts_are_refused_by_name(source: PolicySource, records):
    length = int(PromptEncoder(source.processor(), Qwen25VL(), 256)(records).mask.sum(1).max())
    assert len(PromptEncoder(source.processor(), Qwen25VL(), length)(records)) == 3
    with pytest.raises(
        ValueError, match=rf"scene val/0/\d+: the prompt has {length} tokens, .* max_prompt_tokens is {length - 1}"
    ):
        PromptEncoder(source.processor(), Qwen25VL(), length - 1)(records)


def test_prompts_move_between_devices(prompts):
    moved = prompts.to(torch.device("meta"))
    assert moved.tokens.is_meta
    assert moved.mask.is_meta
    assert moved.token_types.is_meta
    assert all(value.is_meta for value in moved.vision.values())
    assert moved.records is prompts.records
