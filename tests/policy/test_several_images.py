"""Several images in one prompt: which belong to it, the training pass and the rollout against prompts alone, a step."""

import json
from dataclasses import replace

import pytest
import torch

from tests.modules.test_grpo import build, weights
from tests.policy.tiny_models import write_tiny
from tests.trainers import trainer
from vr1.data import ReferringDataModule
from vr1.policy import PolicySource
from vr1.prompts import PromptEncoder
from vr1.rollout import Sampling, generate

SHARING = ["embedded", "qwen2_vl", "qwen3_vl", "glm4v", "internvl"]
UNSHARED = ["qwen3_5", "gemma3", "gemma4"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(kind):
        if kind not in made and kind != "embedded":
            made[kind] = tmp_path_factory.mktemp(kind)
            write_tiny(kind, made[kind])
        return PolicySource() if kind == "embedded" else PolicySource(path=str(made[kind]))

    return folder


@pytest.fixture
def source(request, folders):
    return folders(request.param)


@pytest.fixture
def several(records):
    """Prompts of two, one and three images; the boxes of the last are on its first image."""
    one, two, three = records
    crop = one.image.crop((0, 0, 60, 40))
    return [
        replace(one, references=(two.image,)),
        two,
        replace(three, references=(crop, one.image), image_first=True),
    ]


def prompts_of(source, records):
    return PromptEncoder(source.processor(), source.family(), 2048)(records)


@pytest.mark.parametrize("source", [*SHARING, *UNSHARED], indirect=True)
def test_a_prompt_holds_its_own_images(source, several):
    prompts = prompts_of(source, several)
    assert prompts.image_counts == [2, 1, 3]
    encoder = PromptEncoder(source.processor(), source.family(), 2048)
    for row, record in enumerate(several):
        alone = prompts_of(source, [record])
        assert prompts.tokens[row][prompts.mask[row]].tolist() == alone.tokens[0].tolist()
        for name, value in prompts.vision_of(row).items():
            torch.testing.assert_close(value, alone.vision[name])
        # Its boxes are in the frame of the image that they are on.
        assert prompts.input_sizes[row] == encoder.input_size(record.image.size)
        parts = [prompts_of(source, [replace(record, image=image, references=())]) for image in record.prompt_images]
        assert prompts.image_tokens[row] == sum(part.image_tokens[0] for part in parts)


@pytest.mark.parametrize("source", [*SHARING, *UNSHARED], indirect=True)
@pytest.mark.filterwarnings("ignore:policy. a ")
def test_log_probs_of_a_batch_equal_those_of_prompts_alone(source, several, ragged_completions):
    tokens, mask = (part[:, :2] for part in ragged_completions)
    tokens = tokens % 90 + 10
    policy = source.load()
    plain = replace(source, share_prompt=False).load()
    prompts = prompts_of(source, several)
    with torch.no_grad():
        batch = policy.log_probs(prompts, tokens, mask)[0]
        for row, record in enumerate(several):
            alone = prompts_of(source, [record])
            expected = plain.log_probs(alone, tokens[row : row + 1], mask[row : row + 1])[0]
            torch.testing.assert_close(batch[row], expected[0], atol=1e-4, rtol=0)
        swapped = replace(several[0], references=(several[0].image,), image=several[0].references[0])
        other = policy.log_probs(prompts_of(source, [swapped]), tokens[:1], mask[:1])[0]
    assert (other - batch[:1]).abs().max() > 1e-3, "the order of the images matters"


@pytest.mark.parametrize("source", ["embedded", "qwen3_vl", "gemma4"], indirect=True)
@pytest.mark.filterwarnings("ignore:policy. a ")
def test_a_rollout_of_a_batch_equals_that_of_prompts_alone(source, several):
    policy, tokenizer = source.load().eval(), source.processor().tokenizer
    sampling = Sampling(group_size=2, max_new_tokens=6)
    batch = generate(policy, prompts_of(source, several), sampling, tokenizer)
    for row, record in enumerate(several):
        alone = generate(policy, prompts_of(source, [record]), sampling, tokenizer)
        assert batch.texts[row] == alone.texts[0]


@pytest.mark.parametrize("source", ["embedded", "qwen2_vl", "qwen3_vl", "qwen3_5"], indirect=True)
@pytest.mark.filterwarnings("ignore:policy. a ")
def test_a_step_and_an_evaluation(source, several, tmp_path):
    lines = []
    for number, record in enumerate(several):
        for place, image in enumerate(record.prompt_images):
            image.save(tmp_path / f"{number}_{place}.png")
        images = [f"{number}_{place}.png" for place in range(len(record.prompt_images))]
        lines.append({"images": images, "expression": "the one that the first image shows", "solution": [1, 2, 40, 50]})
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    files = {"crops": tmp_path / "lines.jsonl"}
    data = ReferringDataModule(
        tmp_path, train=files, val=files, test=files, scene="last", batch_size=3, eval_batch_size=3, num_workers=0
    )
    module = build(source, family=None)
    module.configure_model()
    before = weights(module)
    fit = trainer(tmp_path, max_steps=1, limit_val_batches=1)
    fit.fit(module, data)
    assert fit.global_step == 1
    assert any((before[name] != value).any() for name, value in weights(module).items())
    assert any(name.startswith("val/") for name in fit.callback_metrics)
    predictions = [one for batch in trainer(tmp_path).predict(module, data) for one in batch]
    # Galleries and prediction files show the image that the boxes are on.
    assert [one.record.image.size for one in predictions] == [record.prompt_images[-1].size for record in several]


@pytest.mark.parametrize("source", ["paligemma"], indirect=True)
def test_a_model_that_takes_one_image(source, several):
    with pytest.raises(ValueError, match=rf"{several[0].origin}: 2 images in one prompt: this model takes one"):
        prompts_of(source, [several[1], several[0]])
