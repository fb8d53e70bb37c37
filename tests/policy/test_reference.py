"""The reference of a policy: a copy of the weights that are trained; the others are those of the policy itself."""

from dataclasses import replace

import pytest
import torch

from tests.policy.tiny_models import write_tiny
from vr1.errors import UserError
from vr1.policy import Lora, PolicySource, Reference


def freeze_vision(policy):
    policy.base.model.visual.requires_grad_(False)


def freeze_some(policy):
    """Of the language model, the embeddings (which the head is tied to, in some models) and a part of a layer."""
    policy.base.get_input_embeddings().requires_grad_(False)
    policy.base.model.language_model.layers[0].mlp.requires_grad_(False)


def freeze_nothing(policy):
    pass


def parameters(policy):
    return dict(policy.named_parameters(remove_duplicate=False))


def train(policy):
    """Move every weight that is trained, in place, as an optimizer does."""
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("freeze", [freeze_vision, freeze_some, freeze_nothing])
def test_weights_that_are_not_trained_are_those_of_the_policy(source, freeze):
    policy = source.load()
    freeze(policy)
    start = {name: weight.detach().clone() for name, weight in policy.named_parameters()}
    [copied] = Reference(policy).policies()
    train(policy)
    ours, copies = parameters(policy), parameters(copied)
    assert ours.keys() == copies.keys()
    assert any(weight.requires_grad for weight in ours.values())
    for name, weight in ours.items():
        shared = copies[name].untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()
        assert shared == (not weight.requires_grad), name
        assert not copies[name].requires_grad
    for name, weight in copied.named_parameters():
        assert torch.equal(weight, start[name]), name
    buffers = {buffer.data_ptr() for buffer in policy.buffers()}
    assert buffers
    assert not buffers & {buffer.data_ptr() for buffer in copied.buffers()}
    assert policy.training
    assert not any(part.training for part in copied.modules())


def test_tied_weights(tmp_path):
    """Gemma 2 reads tokens and writes logits with one matrix."""
    write_tiny("griffon_g", tmp_path)
    policy = PolicySource(path=str(tmp_path)).load()
    head, embeddings = policy.base.lm_head, policy.base.get_input_embeddings()
    assert head.weight is embeddings.weight
    for frozen in (True, False):
        head.weight.requires_grad_(not frozen)
        [copied] = Reference(policy).policies()
        assert copied.base.lm_head.weight is copied.base.get_input_embeddings().weight
        assert (copied.base.lm_head.weight is head.weight) == frozen


@pytest.mark.parametrize("freeze", [freeze_vision, freeze_some, freeze_nothing])
def test_log_probs_stay_those_of_the_start(source, prompts, ragged_completions, freeze):
    policy = source.load()
    freeze(policy)
    reference = Reference(policy)
    with torch.no_grad():
        start, _ = policy.log_probs(prompts, *ragged_completions)
    assert torch.equal(reference.log_probs(prompts, *ragged_completions, temperature=1.0), start)
    train(policy)
    assert torch.equal(reference.log_probs(prompts, *ragged_completions, temperature=1.0), start)
    with torch.no_grad():
        assert not torch.equal(policy.log_probs(prompts, *ragged_completions)[0], start)


@pytest.mark.parametrize("first", ["policy", "copy"])
def test_where_one_moves_the_other_does(source, first):
    """A conversion moves the memory of parameters as a change of the device does."""
    policy = replace(source, freeze_vision=True).load()
    [copied] = Reference(policy).policies()
    one, other = (policy, copied) if first == "policy" else (copied, policy)
    one.to(torch.float64)
    other.to(torch.float64)
    copies = parameters(copied)
    for name, weight in parameters(policy).items():
        assert weight.dtype == copies[name].dtype == torch.float64
        assert (weight.data_ptr() == copies[name].data_ptr()) == (not weight.requires_grad), name


def test_a_weight_that_is_trained_later_is_an_error(source, prompts, ragged_completions):
    policy = replace(source, freeze_vision=True).load()
    reference = Reference(policy)
    # One that is no longer trained is the reference's own all the same.
    policy.base.lm_head.requires_grad_(False)
    reference.log_probs(prompts, *ragged_completions, temperature=1.0)
    policy.base.model.visual.merger.requires_grad_(True)
    with pytest.raises(UserError, match=r"visual\.merger\.\S+ is trained now, and was frozen .* set loss.kl_coef to 0"):
        reference.log_probs(prompts, *ragged_completions, temperature=1.0)


def test_adapters_need_no_copy(source):
    assert Reference(replace(source, lora=Lora(rank=2)).load()).policies() == []
