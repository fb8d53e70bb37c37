"""RMS norms of transformers in fewer operators, which store less for backward.

Transformers computes ``weight * x / sqrt(mean(x^2) + epsilon)`` by eight operators, converted to float32 and back in
between; forward and backward take thirty passes over the states, and activations are stored in float32. Here backward
is one formula, and what is stored is the input and a number for each token. On a GPU it is torch's own kernel; on a
CPU, float32 is computed in one pass over memory.

Shape letters: D width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import rms_norm

from vr1.cpu_kernels import training
from vr1.policy.forwards import replace_forward
from vr1.policy.products import without_autocast

__all__ = ["RMS_NORMS", "fuse_norm"]

# Classes that compute the formula above, with `weight` [D] and `variance_epsilon`.
RMS_NORMS = frozenset(
    {
        "LlamaRMSNorm",
        "Qwen2RMSNorm",
        "Qwen2VLRMSNorm",
        "Qwen2_5_VLRMSNorm",
        "Qwen3RMSNorm",
        "Qwen3VLTextRMSNorm",
    }
)


def fuse_norm(norm: nn.Module) -> None:
    """Change the forward of a norm in place.

    Args:
        norm: an instance of a class in `RMS_NORMS`.

    Example:
        >>> from transformers.models.llama.modeling_llama import LlamaRMSNorm
        >>> norm, states = LlamaRMSNorm(4), torch.randn(2, 4)
        >>> before = norm(states)
        >>> fuse_norm(norm)
        >>> torch.allclose(norm(states), before, atol=1e-6)
        True
    """
    replace_forward(norm, _norm)


def _norm(self: Any, hidden_states: Tensor) -> Tensor:
    if hidden_states.device.type != "cuda":
        result: Tensor = _RmsNorm.apply(hidden_states, self.weight, self.variance_epsilon)
        return result
    weight = self.weight.to(hidden_states.dtype)
    with without_autocast("cuda"):
        return rms_norm(hidden_states, weight.shape, weight, self.variance_epsilon)


class _RmsNorm(torch.autograd.Function):
    """Computes in float32 and returns the precision of the input, as a GPU's kernel does."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        if training.is_fused(states, weight):
            output, scale = training.rms_norm(states, weight, epsilon)
            ctx.save_for_backward(states, weight, scale)
            return output
        wide = states.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        # One over the root of the mean square: a number for each token.
        scale = length.square_().div_(states.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(states, weight, scale)
        return (wide * scale).mul_(weight).to(states.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        states, weight, scale = ctx.saved_tensors
        if training.is_fused(gradients[0], states, weight):
            return *training.rms_norm_backward(gradients[0], states, weight, scale, *ctx.needs_input_grad[:2]), None
        gradient, normed = gradients[0].float(), states.float() * scale
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (gradient * normed).reshape(-1, len(weight)).sum(0).to(weight.dtype)
        if not ctx.needs_input_grad[0]:
            return None, of_weight, None
        weighted = gradient * weight
        along = (weighted * normed).sum(-1, keepdim=True).div_(-states.shape[-1])
        return weighted.addcmul_(normed, along).mul_(scale).to(states.dtype), of_weight, None
