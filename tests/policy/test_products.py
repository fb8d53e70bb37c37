"""Products of 16-bit factors in float32, against the same in float64."""

import pytest
import torch
from torch import nn

from tests.policy.tiny_models import write_tiny
from vr1.policy import PolicySource
from vr1.policy.attention import capped_attention
from vr1.policy.products import Float32Head, multiplies_into_float32, multiply_into_float32
from vr1.rollout.linear import prepare_head

HALVES = [torch.bfloat16, torch.float16]


def drawn(*shape, dtype):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_product_and_gradients(dtype, autocast, batch):
    # More columns than are converted at a time.
    first = drawn(*batch, 5, 64, dtype=dtype).requires_grad_()
    second = drawn(*batch, 64, 9000, dtype=dtype).requires_grad_()
    weights = drawn(*batch, 5, 9000, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = multiply_into_float32(first, second)
    assert result.dtype == torch.float32
    (result * weights).sum().backward()
    exact = [part.detach().double().requires_grad_() for part in (first, second)]
    expected = exact[0] @ exact[1]
    (expected * weights).sum().backward()
    torch.testing.assert_close(result.double(), expected, atol=2e-5, rtol=1e-5)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    for part, whole in zip((first, second), exact, strict=True):
        assert part.grad.dtype == dtype
        scale = float(whole.grad.abs().max())
        torch.testing.assert_close(part.grad.double(), whole.grad, atol=tolerance * scale, rtol=0)


def test_devices():
    assert multiplies_into_float32(torch.device("cuda"))
    assert multiplies_into_float32(torch.device("meta"))
    assert not multiplies_into_float32(torch.device("cpu"))
    empty = torch.empty(2, 3, 4, dtype=torch.bfloat16, device="meta")
    assert multiply_into_float32(empty, empty.transpose(1, 2)).dtype == torch.float32


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("how", ["float32", "bfloat16", "autocast"])
def test_the_head_in_training_and_in_rollouts(bias, how):
    torch.manual_seed(0)
    head = nn.Linear(64, 300, bias=bias)
    states = torch.randn(2, 5, 64)
    half = how != "float32"
    exact = head.weight.bfloat16().double() if half else head.weight.double()
    expected = (states.bfloat16() if half else states).double() @ exact.t() + (head.bias.double() if bias else 0)
    head.__class__ = Float32Head
    if how == "bfloat16":
        head.to(torch.bfloat16)
        states = states.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"), torch.no_grad():
        found, decoded = head(states), prepare_head(head, 10)(states.flatten(0, 1)).view(2, 5, -1)
    tolerance = 2e-3 if bias and how == "bfloat16" else 2e-5
    for logits in (found, decoded):
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits.double(), expected, atol=tolerance, rtol=1e-5)


def test_capped_scores_are_not_rounded():
    query, key = (drawn(1, 2, 3, 64, dtype=torch.bfloat16) for _ in range(2))
    value = torch.eye(3, dtype=torch.bfloat16).expand(1, 2, 3, 3)
    weights = capped_attention(query, key, value, torch.ones(3, 3, dtype=torch.bool), 3.0, 20.0)
    scores = torch.tanh(query.double() @ key.double().transpose(-1, -2) * 3 / 20) * 20
    # Scores of up to 20 in bfloat16 would be wrong by up to 0.06, and weights by as much of themselves.
    torch.testing.assert_close(weights.double(), scores.softmax(-1), atol=0, rtol=0.005)


@pytest.mark.parametrize("kind", ["qwen2_vl", "griffon_g", "paligemma"])
def test_every_kind_of_model_has_float32_logits(kind, tmp_path):
    write_tiny(kind, tmp_path)
    policy = PolicySource(path=str(tmp_path), dtype="bfloat16").load()
    head = policy.base.get_output_embeddings()
    assert type(head) is Float32Head
    assert head(torch.zeros(1, head.in_features, dtype=torch.bfloat16)).dtype == torch.float32
    assert {name for name in policy.base.state_dict() if "lm_head" in name} <= {"lm_head.weight"}
