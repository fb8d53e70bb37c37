"""Prompts go through the last layer's MLP with one token each; completions with all of theirs."""

import pytest
import torch

from vr1.policy.model import Policy


@pytest.mark.parametrize("known", [True, False])
def test_tokens_in_the_mlps(source, encoder, records, known):
    network = source.load().base
    for layer in network.model.language_model.layers:
        # Hooks of the policy that the network comes from.
        layer.mlp._forward_pre_hooks.clear()
    if not known:
        layer.__class__ = type("OtherLayer", (type(layer),), {})
    policy = Policy(network)
    seen = {}
    for name, layer in zip(("before", "last"), network.model.language_model.layers[-2:], strict=True):
        layer.mlp.gate_proj.register_forward_hook(
            lambda _, inputs, __, name=name: seen.setdefault(name, []).append(inputs[0].shape[1])
        )
    prompts, tokens = encoder(records[:1]), torch.full((1, 2, 3), 40)
    policy.log_probs(prompts, tokens, torch.ones_like(tokens, dtype=torch.bool))
    prompt = prompts.tokens.shape[1]
    assert seen == {"before": [prompt, 6], "last": [1 if known else prompt, 6]}
