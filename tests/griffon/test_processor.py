"""The processor: the square resize, the prompt of the released code, and images that are refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from tests.griffon.models import small_model, write_released
from vr1.errors import UserError
from vr1.families import Griffon
from vr1.griffon import GriffonGProcessor
from vr1.policy.tiny import build_tokenizer
from vr1.policy.tiny_griffon import GriffonSizes, build_processor
from vr1.policy.tiny_griffon import build_tokenizer as griffon_tokenizer
from vr1.prompts import PromptEncoder

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def processor():
    return small_model()[1]


@pytest.fixture
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((150, 90), Image.Resampling.BICUBIC)


def test_images_are_resized_to_a_square_as_pil_does(processor, image):
    """To within one gray level, by which torch's and PIL's bilinear filters differ; and without a crop."""
    ours = processor.image_processor(images=[image], return_tensors="pt")["pixel_values"][0]
    expected = np.asarray(image.resize((56, 56), Image.Resampling.BILINEAR), dtype=np.float64)
    levels = (ours.permute(1, 2, 0).double().numpy() * STD + MEAN) * 255
    assert np.abs(levels - expected).max() < 1.01
    assert np.abs(levels - expected).mean() < 0.3


def test_the_prompt_is_that_of_the_released_code(processor, image):
    question = "Where is the cat?"
    text = PromptEncoder(processor, Griffon(), 4096).chat(question)
    encoded = processor(text=[text], images=[image], return_tensors="pt")
    ids = encoded["input_ids"][0].tolist()
    start, end = 106, 107

    def plain(part):
        return processor.tokenizer(part, add_special_tokens=False)["input_ids"]

    # The sentinel's place has the image's token, once for each feature.
    expected = [2, start, *plain("user\n"), *[7] * 16, *plain("\n" + question), end, *plain("\n"), start]
    assert ids == [*expected, *plain("model\n")]
    assert processor.image_token_id == 7
    assert encoded["pixel_values"].shape == (1, 3, 56, 56)
    # As from a user who writes the text by hand, also with the token that begins a text in it or not.
    assert processor(text=text, images=image)["input_ids"] == [ids]


def test_an_answer_does_not_show_special_tokens(processor):
    ids = [7, *processor.tokenizer("cat", add_special_tokens=False)["input_ids"], 107]
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == "cat"


def test_prompts_of_a_batch_are_padded_on_the_left(processor, image):
    encoder = PromptEncoder(processor, Griffon(), 4096)
    texts = [encoder.chat("Where?"), encoder.chat("Where is the small cat?")]
    encoded = processor(text=texts, images=[[image], [image]], padding=True, padding_side="left", return_tensors="pt")
    assert encoded["attention_mask"][0].tolist() == sorted(encoded["attention_mask"][0].tolist())
    assert (encoded["input_ids"] == 7).sum(1).tolist() == [16, 16]
    alone = processor(text=texts[0], images=image, return_tensors="pt")["input_ids"][0]
    assert encoded["input_ids"][0][encoded["attention_mask"][0].bool()].tolist() == alone.tolist()


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "I;16"])
def test_an_image_that_is_no_rgb_is_one_error(processor, mode):
    with pytest.raises(UserError, match=rf"20 x 10 pixels has the mode {mode} and is no RGB; convert it"):
        processor(text="<unused0>", images=Image.new(mode, (20, 10)))


def test_an_array_is_one_error(processor):
    with pytest.raises(UserError, match="an image is a ndarray; give images of PIL"):
        processor(text="<unused0>", images=[np.zeros((4, 4, 3), dtype=np.uint8)])


def test_images_and_their_tokens_must_agree(processor, image):
    with pytest.raises(ValueError, match="have 1 image tokens <unused0> and 2 images"):
        processor(text="<unused0>", images=[image, image])


def test_a_saved_processor_loads_as_it_was(processor, image, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is GriffonGProcessor
    assert loaded.chat_template == processor.chat_template
    ours, theirs = (one(text="a<unused0>b", images=image, return_tensors="pt") for one in (processor, loaded))
    assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
    torch.testing.assert_close(ours["pixel_values"], theirs["pixel_values"])


def test_the_processor_of_released_weights(image, tmp_path):
    model, processor = small_model()
    loaded = AutoProcessor.from_pretrained(write_released(tmp_path, model, processor))
    assert type(loaded) is GriffonGProcessor
    ours, theirs = (one(text="a<unused0>b", images=image, return_tensors="pt") for one in (processor, loaded))
    assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
    torch.testing.assert_close(ours["pixel_values"], theirs["pixel_values"])


def test_a_tokenizer_without_the_image_token_is_one_error():
    with pytest.raises(UserError, match="the tokenizer has no token <unused0>"):
        build_processor(build_tokenizer(), GriffonSizes())


def test_a_tokenizer_with_other_ids_is_one_error(tmp_path):
    model, processor = small_model()
    folder = write_released(tmp_path, model, processor)
    other = build_tokenizer()
    other.add_tokens(["<unused0>"])
    other.save_pretrained(folder)
    with pytest.raises(UserError, match=rf"its tokenizer has <unused0> as {len(other) - 1}, Gemma 2's as 7"):
        AutoProcessor.from_pretrained(folder)
    assert griffon_tokenizer().convert_tokens_to_ids("<unused0>") == 7


@pytest.mark.parametrize("size", [(640, 480), (333, 500), (1200, 300), (97, 1022)])
def test_boxes_are_written_and_read_back_within_half_a_thousandth(size, processor):
    """In 0..1 of each axis by itself, since the resize does not keep the aspect ratio."""
    family = Griffon()
    generator = np.random.default_rng(0)
    corners = np.sort(generator.random((50, 2, 2)), axis=1) * size
    boxes = corners.reshape(50, 4)
    text = family.write(family.from_image(boxes, size, (1022, 1022)), ["a dog"] * 50)
    answer = family.read(text)
    back = family.to_image(answer.boxes, size, (1022, 1022))
    error = np.abs(back - boxes) / np.array([*size, *size])
    assert error.max() <= 0.0005 + 1e-9
    assert answer.labels == ("a dog",) * 50
    assert answer.follows_template
