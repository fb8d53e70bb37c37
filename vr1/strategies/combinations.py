"""Refuses, before any weights are loaded, what cannot work together, and names what can."""

from typing import Any

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy

from vr1.errors import UserError
from vr1.policy.loading import PolicySource
from vr1.strategies.fully_sharded import FullySharded

_SHARDED_PRECISIONS = ("32-true", "bf16-true", "bf16-mixed")


def check_combination(
    strategy: Strategy, source: PolicySource, precision: str | None = None, optimizer: type | None = None
) -> None:
    """Refuse a combination that cannot work.

    Args:
        strategy: of the trainer.
        source: how the policy will be loaded.
        precision: the trainer's.
        optimizer: the class that will train the policy; None in evaluation.

    Raises:
        UserError: it cannot; the message names the combination that does what was meant.

    Example:
        >>> from vr1.policy.loading import Lora
        >>> four_bits = PolicySource(lora=Lora(), quantize="nf4")
        >>> check_combination(FullySharded(), four_bits)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        vr1.errors.UserError: policy.quantize=nf4 with trainer.strategy fully_sharded: 4-bit weights ...
    """
    if not isinstance(strategy, FullySharded):
        _check_known(strategy)
        return
    if source.quantize:
        raise UserError(
            f"policy.quantize={source.quantize} with trainer.strategy fully_sharded: 4-bit weights cannot be divided"
            " among processes; set trainer.strategy ddp (a whole 4-bit model on each), or leave policy.quantize out"
            " (16-bit weights in shards)"
        )
    if precision is not None and precision not in _SHARDED_PRECISIONS:
        raise UserError(
            f"trainer.precision={precision} with trainer.strategy fully_sharded: a loss in float16 has to be scaled"
            " across shards, which is not done here; set trainer.precision bf16-mixed"
        )
    if optimizer is not None and optimizer.__module__.partition(".")[0] == "bitsandbytes":
        raise UserError(
            f"model.optimizer={optimizer.__name__} with trainer.strategy fully_sharded: optimizers of bitsandbytes do"
            " not know shards; set model.optimizer torch.optim.AdamW, whose states are divided among the processes"
        )


def _check_known(strategy: Any) -> None:
    """Allow one device and DDP; whatever else divides the model has to know about rollouts."""
    if isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        return
    name = type(strategy).__name__
    if isinstance(strategy, ModelParallelStrategy) or "FSDP" in name or "DeepSpeed" in name:
        raise UserError(
            f"trainer.strategy={name}: it would have every process take part in each token that any of them samples,"
            " and hang when one is done; set trainer.strategy fully_sharded, which divides the model and gathers it for"
            " rollouts, or ddp"
        )
