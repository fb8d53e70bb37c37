"""Muon for the matrices of a model and AdamW for the rest, as one optimizer; norms and clipping; default optimizers."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Muon, Optimizer

from vr1.errors import UserError

__all__ = ["MuonAdamW", "clippable", "gradient_norm", "is_default_learning_rate", "named_lambdas"]

Class = TypeVar("Class", bound=type)

# Their rows are vectors of single tokens: they are not maps from one space to another.
_TOKEN_TABLES = ("embed_tokens", "lm_head")


def is_default_learning_rate(optimizer: Optimizer) -> bool:
    """Whether all learning rates of an optimizer are the default of its class, and so perhaps nobody's choice.

    Example:
        >>> layer = torch.nn.Linear(1, 1)
        >>> [is_default_learning_rate(AdamW(layer.parameters(), **given)) for given in ({}, {"lr": 1e-6})]
        [True, False]
    """
    setting = inspect.signature(type(optimizer)).parameters.get("lr")
    rates = [group["lr"] for group in optimizer.param_groups if "lr" in group]
    return setting is not None and bool(rates) and all(rate == setting.default for rate in rates)


def named_lambdas(cls: Class) -> Class:
    """Give a class its default lambdas as attributes, so that instances with one of them can be pickled.

    The command line reads class and settings of a default optimizer from the source of a lambda. Pickle finds a
    function by its name, and ``<lambda>`` is the name of none.

    Example:
        >>> import pickle
        >>> from vr1 import SFTModule
        >>> b"SFTModule.<lambda>" in pickle.dumps(SFTModule().optimizer)
        True
    """
    for parameter in inspect.signature(cls).parameters.values():
        if inspect.isfunction(parameter.default) and parameter.default.__name__ == "<lambda>":
            setattr(cls, "<lambda>", parameter.default)
    return cls


def gradient_norm(optimizer: Optimizer) -> Tensor | None:
    """The norm of all gradients together, a scalar; of sharded ones that of all processes. None without a gradient.

    Example:
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> layer.weight.grad = torch.tensor([[3.0, 4.0]])
        >>> gradient_norm(AdamW(layer.parameters()))
        tensor(5.)
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not gradients:
        return None
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


@contextmanager
def clippable(optimizer: Optimizer, precision: Precision) -> Iterator[None]:
    """A context in which Lightning clips the gradients of a fused optimizer wherever they are not scaled.

    A fused optimizer undoes the scale of gradients in its step, so that they cannot be clipped before. Lightning
    refuses this in every mixed precision, but only float16 has a scale: in bfloat16, gradients are what they are.

    Args:
        optimizer: any optimizer.
        precision: the trainer's plugin.

    Example:
        >>> optimizer = AdamW(torch.nn.Linear(1, 1).parameters(), fused=True)
        >>> bfloat16 = MixedPrecision("bf16-mixed", "cpu")
        >>> with clippable(optimizer, bfloat16):
        ...     bfloat16.clip_gradients(optimizer, 1.0)
    """
    scaled = not isinstance(precision, MixedPrecision) or precision.scaler is not None
    if scaled or not getattr(optimizer, "_step_supports_amp_scaling", False):
        yield
        return
    # torch's mark of an optimizer that knows the scale, which nothing but a scaler reads otherwise.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        optimizer._step_supports_amp_scaling = True  # type: ignore[attr-defined]


class MuonAdamW(Optimizer):
    """`torch.optim.Muon` for weight matrices and `torch.optim.AdamW` for everything else, at one learning rate.

    Muon's update is scaled to the size of AdamW's, so that both use the same learning rate and schedule. From random
    weights it learns to locate objects in half the steps of AdamW.

    Args:
        params: (name, parameter) pairs.
        lr: learning rate of both.
        betas: AdamW's coefficients of the moving averages.
        momentum: Muon's momentum.
        weight_decay: weight decay of both.

    Raises:
        UserError: parameters come without names, which distinguish a weight matrix from a table of tokens.

    Example:
        >>> layer = torch.nn.Linear(3, 2)
        >>> optimizer = MuonAdamW(layer.named_parameters(), lr=0.1)
        >>> [len(group["params"]) for group in optimizer.param_groups]
        [1, 1]

    Source: Jordan et al., Muon, https://kellerjordan.github.io/posts/muon/; the scale is that of Moonlight, arXiv
    2502.16982.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.98),
        momentum: float = 0.95,
        weight_decay: float = 0.05,
    ) -> None:
        named = list(params)
        if not all(isinstance(entry, tuple) for entry in named):
            raise UserError("MuonAdamW: give (name, parameter) pairs, as `module.named_parameters()` does")
        matrices = [entry for entry in named if _is_matrix(*entry)]
        rest = [entry for entry in named if not _is_matrix(*entry)]
        # Either may be missing: adapters have matrices only.
        self._parts: list[Optimizer] = []
        if matrices or not rest:
            self._parts.append(
                Muon(matrices, lr=lr, momentum=momentum, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            )
        if rest:
            self._parts.append(AdamW(rest, lr=lr, betas=betas, weight_decay=weight_decay))
        super().__init__([group for part in self._parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of both optimizers.

        Args:
            closure: computes the loss again, with gradients.

        Returns:
            What ``closure`` returns; None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Schedules and loaded checkpoints change the groups and the state of this object: both optimizers use these.
        for optimizer, group in zip(self._parts, self.param_groups, strict=True):
            optimizer.param_groups, optimizer.state = [group], self.state
            optimizer.step()
        return loss


def _is_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.dim() == 2 and not any(table in name for table in _TOKEN_TABLES)
