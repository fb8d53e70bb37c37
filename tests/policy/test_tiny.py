"""The untrained model: sizes, initial weights, and that it loads as any other."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from vr1.policy.tiny import Sizes, build_model, build_tokenizer, write_model


def test_loads_as_a_released_model_does(tmp_path: Path) -> None:
    write_model(tmp_path, seed=3)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert model.config.vision_config.rope_parameters["rope_theta"] == Sizes().vision_rope_theta
    assert processor.tokenizer.vocab["112"] < model.config.text_config.vocab_size


def test_a_seed_fixes_the_weights() -> None:
    tokenizer = build_tokenizer()
    first, same, other = (build_model(tokenizer, Sizes(), seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_neighbouring_numbers_start_as_neighbours() -> None:
    tokenizer = build_tokenizer()
    rows = build_model(tokenizer, Sizes()).get_input_embeddings().weight.detach()
    embedding = torch.stack([rows[tokenizer.vocab[str(number)]] for number in range(100)])
    unit = torch.nn.functional.normalize(embedding, dim=1)
    likeness = torch.stack([(unit[:-gap] * unit[gap:]).sum(1).mean() for gap in (1, 4, 16)])
    assert likeness.diff().max() < 0, likeness
    assert embedding.norm(dim=1).mean() == pytest.approx(rows.norm(dim=1).median().item(), rel=0.15)


def test_refuses_heads_that_rotary_positions_cannot_share() -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        Sizes(hidden=100, heads=5)
