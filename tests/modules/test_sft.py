"""Supervised fine-tuning against plain transformers."""

from dataclasses import replace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.trainers import trainer
from vr1.data import SceneDataModule, SceneStyle
from vr1.modules.sft import SFTModule
from vr1.types import as_boxes


def answers(module, prompts):
    """The answers' texts, closed by the end token, as the module would train on them."""
    tokens, mask = module.encoder.targets(prompts, module.policy.eos_tokens[0], module.target_order)
    return [row[kept] for row, kept in zip(tokens[:, 0], mask[:, 0], strict=True)]


@torch.no_grad()
def plain_loss(path, processor, prompts, answers):
    """Cross entropy over all answer tokens, one unpadded row at a time through the model's own forward."""
    model = AutoModelForImageTextToText.from_pretrained(path).eval()
    total, count = 0.0, 0
    for record, instruction, answer in zip(prompts.records, prompts.instructions, answers, strict=True):
        content = [{"type": "image"}, {"type": "text", "text": instruction}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        inputs = processor(text=[text], images=[record.image], return_tensors="pt")
        prompt = inputs["input_ids"]
        inputs["input_ids"] = torch.cat([prompt, answer[None]], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(answer)[None]], dim=1)
        labels = torch.cat([torch.full_like(prompt, -100), answer[None]], dim=1)
        total += float(model(**inputs, labels=labels).loss) * len(answer)
        count += len(answer)
    return total / count


@pytest.fixture
def module(source, monkeypatch, tmp_path):
    module = SFTModule(policy=source, max_prompt_tokens=256)
    module.configure_model()
    module.trainer = pl.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    monkeypatch.setattr(module, "log_dict", lambda *_, **__: None)
    return module


@pytest.mark.parametrize("order", ["annotated", "sorted"])
def test_the_loss_is_the_cross_entropy_of_the_answers(module, prompts, tiny_model, order):
    assert len({record.image_size for record in prompts.records}) > 1
    module.target_order = order
    expected = plain_loss(tiny_model, module.processor, prompts, answers(module, prompts))
    assert float(module.training_step(prompts, 0).detach()) == pytest.approx(expected, rel=1e-5)


def test_an_image_without_objects_teaches_an_empty_list(module, encoder, records):
    empty = replace(records[0], boxes_xyxy=as_boxes([]), labels=(), areas=np.zeros(0), crowd=np.zeros(0, dtype=bool))
    prompts = encoder([empty])
    assert module.processor.tokenizer.decode(answers(module, prompts)[0]) == "```json\n[]\n```<|im_end|>"
    assert torch.isfinite(module.training_step(prompts, 0))


def test_it_learns_a_few_scenes_by_heart(source, tmp_path):
    losses = []

    class Losses(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            losses.append(float(trainer.callback_metrics["sft/loss"]))

    data = SceneDataModule(SceneStyle(), train_scenes=4, val_scenes=1, batch_size=4, num_workers=0)
    pl.seed_everything(0)
    module = SFTModule(policy=source, optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=5e-3))
    trainer(tmp_path, [Losses()], max_steps=30, max_epochs=-1).fit(module, data)
    assert losses[0] > 5
    assert losses[-1] < losses[0] / 3
    assert sum(losses[-5:]) < sum(losses[10:15]) < sum(losses[:5])
