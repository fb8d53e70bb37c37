"""Windows computed together against transformers' one by one."""

import copy

import pytest
import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionAttention

from vr1.policy.patches import WindowAttention, in_batches


@pytest.mark.parametrize("starts", [[0, 16, 32, 48], [0, 16, 24, 40, 44, 48], [0, 48]], ids=str)
def test_windows_together_equal_windows_one_by_one(starts):
    torch.manual_seed(0)
    config = Qwen2_5_VLVisionConfig(hidden_size=32, num_heads=2)
    config._attn_implementation = "sdpa"
    single = torch.nn.Sequential(Qwen2_5_VLVisionAttention(config))
    together = copy.deepcopy(single)
    in_batches(together)
    assert type(together[0]) is WindowAttention
    angles = torch.rand(48, 16)
    position = {"position_embeddings": (angles.cos(), angles.sin())}
    states = torch.randn(48, 32)
    results = []
    for network in (single, together):
        inputs = states.clone().requires_grad_(True)
        result = network[0](inputs, torch.tensor(starts, dtype=torch.int32), **position)
        result.square().sum().backward()
        results.append([result, inputs.grad, *(weight.grad for weight in network.parameters())])
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_the_policy_computes_its_windows_together(source):
    kinds = {type(layer) for layer in source.load().modules() if isinstance(layer, Qwen2_5_VLVisionAttention)}
    assert kinds == {WindowAttention}
