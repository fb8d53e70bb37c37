"""Gated MLPs, ``down(silu(gate(x)) * up(x))``, which store less for backward.

Torch stores ``silu(gate)`` beside ``gate`` and ``up``: one of four tensors of a layer that are the largest. Here
backward computes it once more. On a CPU, forward and backward of the gate are one pass each over memory.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu
from transformers.activations import SiLUActivation

from vr1.cpu_kernels import training
from vr1.policy.forwards import replace_forward

__all__ = ["GATED_MLPS", "fuse_gate", "gated"]

# Classes that compute the formula above, where `act_fn` is SiLU, with `gate_proj`, `up_proj` and `down_proj`.
GATED_MLPS = frozenset({"LlamaMLP", "Qwen2MLP", "Qwen3MLP", "Qwen3VLTextMLP", "Qwen2_5_VLMLP"})


def fuse_gate(mlp: nn.Module) -> None:
    """Change the forward of an MLP in place; one with another activation stays as it is.

    Args:
        mlp: an instance of a class in `GATED_MLPS`, whose layers return new tensors.

    Example:
        >>> from types import SimpleNamespace
        >>> from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP
        >>> mlp = Qwen2MLP(SimpleNamespace(hidden_size=4, intermediate_size=6, hidden_act="silu"))
        >>> states = torch.randn(2, 4)
        >>> before = mlp(states)
        >>> fuse_gate(mlp)
        >>> torch.allclose(mlp(states), before, atol=1e-6)
        True
    """
    if isinstance(mlp.act_fn, (nn.SiLU, SiLUActivation)):
        replace_forward(mlp, _mlp)


def _mlp(self: Any, x: Tensor) -> Tensor:
    result: Tensor = self.down_proj(gated(self.gate_proj(x), self.up_proj(x)))
    return result


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``, stored in ``gate`` where no backward needs that.

    Args:
        gate: any shape and precision.
        up: of the same shape.

    Example:
        >>> gated(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
        tensor([0.0000, 1.4621])
    """
    if gate.dtype != up.dtype or gate.shape != up.shape:
        return silu(gate) * up
    if torch.is_grad_enabled() and (gate.requires_grad or up.requires_grad):
        result: Tensor = _Gated.apply(gate, up)
        return result
    return training.gated(gate, up, in_place=True) if training.is_fused(gate, up) else silu(gate, inplace=True).mul_(up)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return training.gated(gate, up) if training.is_fused(gate, up) else silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,), (gate, up) = gradients, ctx.saved_tensors
        if training.is_fused(gradient, gate, up):
            return training.gated_backward(gradient, gate, up)
        of_up, of_silu = silu(gate).mul_(gradient), gradient * up
        return torch.ops.aten.silu_backward.grad_input(of_silu, gate, grad_input=of_silu), of_up
