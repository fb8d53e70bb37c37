"""Batches of prompts that are joined and divided: against prompts that are encoded together, and completions alone."""

from dataclasses import replace

import pytest
import torch

from tests.policy.tiny_models import KINDS, write_tiny
from vr1.policy import PolicySource
from vr1.prompts import PromptEncoder
from vr1.rollout import Sampling, SharedPrefixSampler, generate
from vr1.rollout.batching import (
    join_prompts,
    join_rollouts,
    select_prefix,
    select_prompts,
    select_rollout,
    split_rollout,
)

SAMPLING = Sampling(group_size=2, max_new_tokens=5)


@pytest.fixture(scope="module", params=["embedded", *(kind for kind in KINDS if kind != "llava")])
def model(request, tmp_path_factory):
    """Policy, encoder and tokenizer of every kind of model that has a family."""
    source = PolicySource()
    if request.param != "embedded":
        folder = tmp_path_factory.mktemp(request.param)
        write_tiny(request.param, folder)
        source = PolicySource(path=str(folder))
    processor = source.processor()
    return source.load().eval(), PromptEncoder(processor, source.family(), 4096), processor.tokenizer


def assert_same(ours, theirs):
    assert [record.image_id for record in ours.records] == [record.image_id for record in theirs.records]
    for name in ("instructions", "input_sizes", "types_name", "image_tokens", "image_counts", "markers"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert torch.equal(ours.mask, theirs.mask)
    assert torch.equal(ours.tokens * ours.mask, theirs.tokens * theirs.mask)
    assert torch.equal(ours.token_types * ours.mask, theirs.token_types * theirs.mask)
    assert ours.vision.keys() == theirs.vision.keys()
    for name, value in theirs.vision.items():
        assert torch.equal(ours.vision[name], value), name


def test_joined_batches_are_those_encoded_together(model, records):
    _, encoder, _ = model
    together = encoder(records)
    # None of these models pads an image to the size of another one.
    [(joined, sizes)] = join_prompts([encoder(records[:1]), encoder(records[1:])])
    assert sizes == [1, 2]
    assert_same(joined, together)
    assert_same(select_prompts(together, [1, 2]), encoder(records[1:]))
    assert_same(select_prompts(together, [2, 0]), encoder([records[2], records[0]]))


def test_images_that_do_not_fit_together_are_sampled_apart(model, records):
    _, encoder, _ = model
    batches = [encoder([record]) for record in records]
    name = next(iter(batches[1].vision))
    batches[1] = replace(batches[1], vision={**batches[1].vision, name: batches[1].vision[name][..., None]})
    assert [sizes for _, sizes in join_prompts(batches)] == [[1], [1], [1]]
    assert [sizes for _, sizes in join_prompts([batches[0], batches[2], batches[1]])] == [[1, 1], [1]]


@pytest.mark.parametrize("max_rows", [1, 4])
def test_parts_have_the_completions_of_the_whole(model, records, max_rows):
    policy, encoder, tokenizer = model
    prompts = encoder(records)
    whole = generate(policy, prompts, SAMPLING, tokenizer, draw=7)
    parts = SharedPrefixSampler(max_rows=max_rows).sample(policy, prompts, SAMPLING, tokenizer, 7)
    assert torch.equal(parts.tokens * parts.mask, whole.tokens * whole.mask)
    assert torch.equal(parts.mask, whole.mask)
    assert torch.equal(parts.finished, whole.finished)
    torch.testing.assert_close(parts.log_probs, whole.log_probs, atol=1e-4, rtol=0)
    assert parts.texts == whole.texts
    assert parts.seconds.keys() == whole.seconds.keys()
    assert parts.prefix is None, "its memory is what the parts save"


def test_parts_with_a_graph_have_the_prefix_of_the_whole(prompts, source):
    policy, tokenizer = source.load(), source.processor().tokenizer
    whole = generate(policy, prompts, SAMPLING, tokenizer, 7, None, True)
    parts = SharedPrefixSampler(max_rows=2).sample(policy, prompts, SAMPLING, tokenizer, 7, None, True)
    log_probs = []
    for rollout in (whole, parts):
        assert rollout.prefix.state.requires_grad
        values, _ = policy.log_probs(prompts, whole.tokens, whole.mask, prefix=rollout.prefix)
        log_probs.append(values)
        values.sum().backward()
    torch.testing.assert_close(*log_probs, atol=1e-5, rtol=0)
    # Resampled from the prefix: the same as from the prompts.
    again = SharedPrefixSampler(max_rows=2).sample(policy, prompts, SAMPLING, tokenizer, 8, parts.prefix)
    assert again.texts == generate(policy, prompts, SAMPLING, tokenizer, 8).texts


def test_some_of_the_prompts_and_completions(prompts, source):
    policy, tokenizer = source.load().eval(), source.processor().tokenizer
    whole = generate(policy, prompts, SAMPLING, tokenizer, 7)
    some = [2, 0]
    alone = generate(policy, select_prompts(prompts, some), SAMPLING, tokenizer, 7)
    selected = select_rollout(whole, some)
    assert selected.texts == alone.texts == [whole.texts[2], whole.texts[0]]
    assert torch.equal(selected.tokens, alone.tokens)
    assert selected.prefix is None
    from_prefix = generate(
        policy, select_prompts(prompts, some), SAMPLING, tokenizer, 7, select_prefix(whole.prefix, some)
    )
    assert from_prefix.texts == alone.texts
    divided = split_rollout(whole, [1, 2])
    assert [part.texts for part in divided] == [whole.texts[:1], whole.texts[1:]]
    assert all(part.mask.any(0).any(0).all() for part in divided), "columns that no completion reaches"
    joined = join_rollouts(divided)
    assert torch.equal(joined.tokens * joined.mask, whole.tokens * whole.mask)
    assert joined.texts == whole.texts
