"""Shared prompts against one full row for every completion, through transformers' own forward."""

import copy
import json
import math
import shutil
from dataclasses import replace
from unittest import mock

import pytest
import torch

from tests.policy.tiny_models import write_tiny
from vr1.policy import Lora, Policy
from vr1.prompts import PromptBatch, PromptEncoder
from vr1.rollout import Sampling, generate


def plain_log_probs(policy: Policy, prompts: PromptBatch, tokens, mask, temperature=1.0):
    """Log-probs ``[B, G, C]`` from one full forward per completion: no shared prefix, no padding."""
    result = torch.zeros(mask.shape)
    patches = prompts.vision["image_grid_thw"].prod(1).tolist()
    pixels = prompts.vision["pixel_values"].split(patches)
    for b in range(tokens.shape[0]):
        prompt = prompts.tokens[b][prompts.mask[b]]
        types = prompts.token_types[b][prompts.mask[b]]
        for g in range(tokens.shape[1]):
            answer = tokens[b, g][mask[b, g]]
            row = torch.cat([prompt, answer])[None]
            logits = policy.network(
                input_ids=row,
                attention_mask=torch.ones_like(row),
                mm_token_type_ids=torch.cat([types, torch.zeros_like(answer)])[None],
                pixel_values=pixels[b],
                image_grid_thw=prompts.vision["image_grid_thw"][b : b + 1],
            ).logits[0, len(prompt) - 1 : -1]
            log_probs = torch.log_softmax(logits.float() / temperature, -1).gather(-1, answer[:, None])[:, 0]
            result = result.index_put((torch.tensor(b), torch.tensor(g), mask[b, g].nonzero()[:, 0]), log_probs)
    return result


def relative_difference(ours, reference) -> float:
    return float((ours - reference).abs().max() / reference.abs().max())


@pytest.mark.parametrize("lora", [None, Lora(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "recomputed"])
@pytest.mark.parametrize("spread", [1.0, math.inf], ids=["each prompt alone", "prompts padded"])
@pytest.mark.parametrize("sampled", [False, True], ids=["prefill", "prefix of the rollout"])
def test_log_probs_and_gradients_equal_those_of_full_forwards(
    source, encoder, prompts, ragged_completions, lora, checkpointing, spread, sampled
):
    torch.manual_seed(0)
    policy = replace(source, lora=lora, gradient_checkpointing=checkpointing).load()
    if lora:
        # Fresh adapters compute nothing: make them matter.
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    plain = copy.deepcopy(policy)
    policy.set_max_length_ratio(spread)
    tokens, mask = ragged_completions
    prefix = None
    if sampled:
        sampling = Sampling(group_size=4, max_new_tokens=9)
        rollout = generate(policy.eval(), prompts, sampling, encoder.processor.tokenizer, with_graph=True)
        tokens, mask, prefix = rollout.tokens, rollout.mask, rollout.prefix
        policy.train()
    weights = torch.randn(mask.shape) * mask

    ours, _ = policy.log_probs(prompts, tokens, mask, prefix=prefix)
    reference = plain_log_probs(plain, prompts, tokens, mask)
    (ours * weights).sum().backward()
    (reference * weights).sum().backward()

    assert ours[~mask].abs().sum() == 0
    assert relative_difference(ours, reference) < 1e-4
    trained = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    assert trained
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert relative_difference(policy.get_parameter(name).grad, parameter.grad) < 1e-4, name


@pytest.mark.parametrize("lengths", [[1, 1, 1, 1], [0, 1, 0, 1], [0, 2, 0, 1]], ids=str)
def test_completions_of_at_most_one_token_are_predicted_by_the_prompt(source, prompts, ragged_completions, lengths):
    policy, (tokens, mask) = source.load(), ragged_completions
    plain = copy.deepcopy(policy)
    mask = (torch.arange(mask.shape[-1]) < torch.tensor(lengths)[:, None]).expand_as(mask)
    weights = torch.randn(mask.shape) * mask
    ours, _ = policy.log_probs(prompts, tokens, mask)
    reference = plain_log_probs(plain, prompts, tokens, mask)
    (ours * weights).sum().backward()
    (reference * weights).sum().backward()
    assert relative_difference(ours, reference) < 1e-4
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            assert relative_difference(policy.get_parameter(name).grad, parameter.grad) < 1e-4, name


def test_no_token_counts(source, prompts, ragged_completions):
    policy = source.load()
    tokens, mask = ragged_completions
    log_probs, entropy = policy.log_probs(prompts, tokens, torch.zeros_like(mask))
    assert log_probs.shape == mask.shape
    assert not log_probs.any()
    assert not entropy.any()
    log_probs.sum().backward()
    assert all(value.grad is None or not value.grad.any() for value in policy.parameters())


def test_temperature_divides_the_logits(source, prompts, ragged_completions):
    policy = source.load()
    tokens, mask = ragged_completions
    with torch.no_grad():
        warm, _ = policy.log_probs(prompts, tokens, mask, temperature=0.7)
        reference = plain_log_probs(policy, prompts, tokens, mask, temperature=0.7)
    assert relative_difference(warm, reference) < 1e-4


def test_entropy_is_that_of_the_distribution(source, prompts, ragged_completions):
    policy = source.load()
    tokens, mask = ragged_completions
    with torch.no_grad():
        policy.base.lm_head.weight.zero_()
        log_probs, entropy = policy.log_probs(prompts, tokens, mask)
    vocabulary = torch.tensor(float(policy.base.lm_head.weight.shape[0]))
    torch.testing.assert_close(entropy[mask], vocabulary.log().expand(int(mask.sum())))
    torch.testing.assert_close(log_probs[mask], -entropy[mask])


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "a row per completion"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_entropy_has_a_gradient_where_a_loss_needs_it(source, prompts, ragged_completions, shared, temperature):
    """Against torch's own distribution on the logits of one full forward per completion."""
    tokens, mask = ragged_completions
    policy = replace(source, share_prompt=shared).load()
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    _, without = policy.log_probs(prompts, tokens, mask, temperature)
    assert not without.requires_grad
    _, entropy = policy.log_probs(prompts, tokens, mask, temperature, entropy_gradient=True)
    torch.testing.assert_close(entropy, without)
    weights = torch.linspace(0.5, 1.5, mask.numel()).view(mask.shape)
    ours = torch.autograd.grad((entropy * weights)[mask].sum(), parameters, allow_unused=True)
    with mock.patch.object(torch, "log_softmax", _entropies):
        expected = plain_log_probs(policy, prompts, tokens, mask, temperature)
    assert relative_difference(entropy[mask], expected[mask]) < 1e-5
    theirs = torch.autograd.grad((expected * weights)[mask].sum(), parameters, allow_unused=True)
    for own, other in zip(ours, theirs, strict=True):
        assert (own is None) == (other is None)
        if own is not None:
            assert float((own - other).abs().max()) < 1e-4 * max(1.0, float(other.abs().max()))
    with torch.no_grad():
        assert not policy.log_probs(prompts, tokens, mask, temperature, entropy_gradient=True)[1].requires_grad


def _entropies(logits, _):
    """In place of log-probs: the entropy of each distribution, for whichever token is read of them."""
    return torch.distributions.Categorical(logits=logits).entropy()[:, None].expand(logits.shape)


def test_image_placeholders_are_forbidden(source):
    policy = source.load()
    tokenizer = source.processor().tokenizer
    assert {"<|image_pad|>", "<|video_pad|>"} <= set(tokenizer.convert_ids_to_tokens(policy.forbidden_tokens))
    assert not set(policy.forbidden_tokens) & set(policy.eos_tokens)


def test_without_adapters_is_the_base_model(source, prompts, ragged_completions):
    tokens, mask = ragged_completions
    base = source.load()
    adapted = replace(source, lora=Lora(rank=4)).load()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        expected, _ = base.log_probs(prompts, tokens, mask)
        with adapted.without_adapters():
            off, _ = adapted.log_probs(prompts, tokens, mask)
        on, _ = adapted.log_probs(prompts, tokens, mask)
    assert relative_difference(off, expected) < 1e-6
    assert relative_difference(on, expected) > 1e-3


@pytest.mark.parametrize(
    ("kind", "part", "shared"),
    [
        ("qwen2_5_vl", "text_config", True),
        ("qwen2_5_vl", "text_config", False),
        # Capped scores.
        ("griffon_g", "text_config", True),
        ("internvl", "vision_config", True),
    ],
)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_dropout_of_attention_makes_forwards_differ(
    source, records, ragged_completions, tmp_path, kind, part, shared, dropout
):
    if kind == "qwen2_5_vl":
        shutil.copytree(source.path, tmp_path, dirs_exist_ok=True)
    else:
        write_tiny(kind, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config[part]["attention_dropout"] = dropout
    (tmp_path / "config.json").write_text(json.dumps(config))
    source = replace(source, path=str(tmp_path), share_prompt=shared)
    policy = source.load()
    prompts = PromptEncoder(source.processor(), source.family(), max_prompt_tokens=512)(records)

    def forwards():
        with torch.no_grad():
            return [policy.log_probs(prompts, *ragged_completions)[0] for _ in range(2)]

    assert policy.has_dropout == (dropout > 0)
    assert policy.can_reuse_prefix(sharded=False) == (shared and dropout == 0)
    assert torch.equal(*forwards()) == (dropout == 0)
    policy.eval()
    assert torch.equal(*forwards())
