"""Prompts go through the last layer's MLP with one token each; completions with all of theirs."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from vr1.policy.policy import Policy


@pytest.mark.parametrize("known", [True, False])
def test_tokens_in_the_mlps(tiny_model, encoder, records, known):
    network = AutoModelForImageTextToText.from_pretrained(tiny_model)
    layers = network.model.language_model.layers[-2:]
    if not known:
        layers[-1].__class__ = type("OtherLayer", (type(layers[-1]),), {})
    policy = Policy(network)
    seen = {}
    for name, layer in zip(("before", "last"), layers, strict=True):
        layer.mlp.gate_proj.register_forward_hook(
            lambda _, inputs, __, name=name: seen.setdefault(name, []).append(inputs[0].shape[1])
        )
    prompts, tokens = encoder(records[:1]), torch.full((1, 2, 3), 40)
    policy.log_probs(prompts, tokens, torch.ones_like(tokens, dtype=torch.bool))
    prompt = prompts.tokens.shape[1]
    assert seen == {"before": [prompt, 6], "last": [1 if known else prompt, 6]}
