"""Checks, before any weights are loaded, that strategy, precision, optimizer and policy work together."""

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy

from vr1.errors import UserError
from vr1.policy.loading import PolicySource
from vr1.strategies import shards_weights

# Lightning casts the whole model to these, the frequencies of rotary positions included. In bfloat16 their angle is
# wrong by 0.58 rad at position 500 and 1.15 rad at position 1,000.
_TRUE_HALF_PRECISIONS = ("bf16-true", "16-true")
_SHARDED_PRECISIONS = ("32-true", "bf16-mixed")
# 16-bit types by Lightning's names of precisions.
_HALF = {"bf16": "bfloat16", "16": "float16"}


def compute_dtype(precision: str, stored: str) -> str:
    """The precision of activations, as a name of torch.

    Args:
        precision: the trainer's.
        stored: that of the weights (``policy.dtype``).

    Example:
        >>> compute_dtype("bf16-mixed", "float32"), compute_dtype("32-true", "bfloat16")
        ('bfloat16', 'bfloat16')
    """
    kind, _, way = precision.partition("-")
    return _HALF[kind] if way in ("mixed", "true") and kind in _HALF else stored


def check_combination(
    strategy: Strategy, source: PolicySource, precision: str | None = None, optimizer: type | None = None
) -> None:
    """Check that a combination of settings works.

    Args:
        strategy: of the trainer.
        source: how the policy will be loaded.
        precision: the trainer's.
        optimizer: the class that will train the policy; None in evaluation.

    Raises:
        UserError: it does not work; the message names the combination to use instead.

    Example:
        >>> from vr1.policy.loading import Lora
        >>> from vr1.strategies import FullySharded
        >>> four_bits = PolicySource(lora=Lora(), quantize="nf4")
        >>> check_combination(FullySharded(), four_bits)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        vr1.errors.UserError: policy.quantize=nf4 with trainer.strategy fully_sharded: 4-bit weights ...
    """
    if precision in _TRUE_HALF_PRECISIONS:
        raise UserError(
            f"trainer.precision={precision}: it casts rotary positions to 16 bits too, which moves tokens and boxes by"
            " many positions in long prompts; set trainer.precision bf16-mixed (with policy.dtype bfloat16 where memory"
            " is short)"
        )
    if not shards_weights(strategy):
        _check_supported(strategy)
        return
    if source.quantize:
        raise UserError(
            f"policy.quantize={source.quantize} with trainer.strategy fully_sharded: 4-bit weights cannot be sharded;"
            " set trainer.strategy ddp (a full 4-bit model on each process), or leave policy.quantize out (16-bit"
            " weights in shards)"
        )
    if source.gradient_checkpointing == "auto":
        raise UserError(
            "policy.gradient_checkpointing=auto with trainer.strategy fully_sharded: processes that recompute"
            " different layers would gather weights at different times, and wait for each other; set it to true, or to"
            " false where `vr1 plan` shows that the memory suffices"
        )
    if precision is not None and precision not in _SHARDED_PRECISIONS:
        raise UserError(
            f"trainer.precision={precision} with trainer.strategy fully_sharded: float16 requires a scaled loss, which"
            " is not supported for sharded weights; set trainer.precision bf16-mixed"
        )
    if optimizer is not None and optimizer.__module__.partition(".")[0] == "bitsandbytes":
        raise UserError(
            f"model.optimizer={optimizer.__name__} with trainer.strategy fully_sharded: optimizers of bitsandbytes do"
            " not support shards; set model.optimizer torch.optim.AdamW, whose states are sharded among the processes"
        )


def _check_supported(strategy: Strategy) -> None:
    """Allow one device and DDP; other strategies that shard the model would deadlock in rollouts."""
    if isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        return
    name = type(strategy).__name__
    if isinstance(strategy, ModelParallelStrategy) or "FSDP" in name or "DeepSpeed" in name:
        raise UserError(
            f"trainer.strategy={name}: every process would take part in each token that any of them samples, and wait"
            " forever when one is done; set trainer.strategy fully_sharded, which shards the model and gathers it for"
            " rollouts, or ddp"
        )
