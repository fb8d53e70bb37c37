"""The memory of completions that are decoded together, against the plan's, which runs the runtime's own code."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from grpo_step.shapes import config_of

from vr1.commands.plan.needs import Needs
from vr1.commands.plan.predict import predict
from vr1.commands.plan.shapes import empty_policy, largest_prompts
from vr1.policy import PolicySource
from vr1.policy.tiny import build_processor, build_tokenizer
from vr1.rollout import Sampling, SharedPrefixSampler
from vr1.rollout.memory import group_bytes, rows_that_fit


@pytest.fixture(scope="module")
def seven_b(tmp_path_factory):
    """A folder with the configuration of Qwen2.5-VL-7B and no weights."""
    folder, tokenizer = tmp_path_factory.mktemp("seven_b"), build_tokenizer()
    config_of("qwen2.5-vl-7b", tokenizer).save_pretrained(folder)
    build_processor(tokenizer, max_pixels=256 * 28 * 28).save_pretrained(folder)
    return PolicySource(path=str(folder), dtype="bfloat16")


@pytest.mark.parametrize(
    ("model", "prompts", "group", "tokens", "top_p"),
    [
        ("embedded", 1, 8, 160, 1.0),
        ("embedded", 4, 16, 64, 1.0),
        ("embedded", 4, 8, 512, 0.9),
        ("seven_b", 4, 8, 64, 0.9),
        ("seven_b", 4, 8, 512, 1.0),
    ],
)
def test_a_prompt_takes_what_the_plan_says(request, model, prompts, group, tokens, top_p):
    source = PolicySource() if model == "embedded" else request.getfixturevalue(model)
    needs = Needs(
        policy=source,
        prompts=prompts,
        group_size=group,
        completion_tokens=tokens,
        max_prompt_tokens=1024,
        reference=False,
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
        top_p=top_p,
        # No graph is kept of the prompts, as in a rollout of several batches.
        sharded=True,
    )
    planned = predict(needs).moments["rollout"]
    rows = sum(planned[part] for part in ("cache", "logits", "activations"))
    sampling = Sampling(group_size=group, max_new_tokens=tokens, top_p=top_p)
    width = largest_prompts(needs, needs.prompts).tokens.shape[1]
    found = prompts * group_bytes(empty_policy(needs), width, sampling, getattr(torch, source.dtype))
    assert found == pytest.approx(rows, rel=0.12)


def test_a_gpu_decodes_what_fits_in_its_free_memory(prompts, source, monkeypatch):
    policy, sampling = source.load(), Sampling(group_size=4, max_new_tokens=32)
    one = group_bytes(policy, prompts.tokens.shape[1], sampling, torch.float32)
    assert rows_that_fit(policy, prompts, sampling) is None, "a CPU has no limit"

    class OnGpu(torch.Tensor):
        device = torch.device("cuda", 0)

    there = replace(prompts, tokens=prompts.tokens.as_subclass(OnGpu))
    free, reserved, allocated = 6.5 * one, 5 * one, 2 * one
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 0))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated)
    # 6.5 that nobody holds and 3 that torch holds for itself, of which four fifths are used: seven groups of four.
    assert rows_that_fit(policy, there, sampling) == 28
    free, reserved = 0, 2 * one
    assert rows_that_fit(policy, there, sampling) == 4, "one group at least"


def test_a_group_is_never_divided(prompts, source):
    sampling = Sampling(group_size=4, max_new_tokens=3)
    tokenizer = source.processor().tokenizer
    rollout = SharedPrefixSampler(max_rows=3).sample(source.load().eval(), prompts, sampling, tokenizer)
    assert rollout.tokens.shape[:2] == (3, 4)
