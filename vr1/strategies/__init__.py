"""Lightning strategies of vr1, for ``trainer.strategy``, and what the rest of the package asks of any strategy.

`FullySharded` shards the model (FSDP2); in YAML it is ``vr1.strategies.FullySharded`` or ``fully_sharded``. A forward
of a sharded model needs all processes, so code that runs for as long as its own data takes, such as a rollout, runs
under `gathered_weights`.
"""

from contextlib import AbstractContextManager, nullcontext

from lightning.pytorch.strategies import Strategy, StrategyRegistry

from vr1.strategies.fully_sharded import FullySharded, HasPolicies

__all__ = ["FullySharded", "HasPolicies", "gathered_weights", "shards_weights"]

StrategyRegistry.register("fully_sharded", FullySharded, description="vr1's FSDP2", override=True)


def shards_weights(strategy: Strategy | type[Strategy]) -> bool:
    """Whether each process holds a part of every weight, so that a forward needs all processes.

    Args:
        strategy: of a trainer, or the class of one.

    Example:
        >>> from lightning.pytorch.strategies import SingleDeviceStrategy
        >>> shards_weights(FullySharded()), shards_weights(SingleDeviceStrategy())
        (True, False)
    """
    return issubclass(strategy if isinstance(strategy, type) else type(strategy), FullySharded)


def gathered_weights(strategy: Strategy) -> AbstractContextManager[None]:
    """A context in which this process has all weights of the policy, so that forwards need no other process.

    To be entered and left by all processes together. Without a sharded model it does nothing.
    """
    return strategy.gathered_weights() if isinstance(strategy, FullySharded) else nullcontext()
