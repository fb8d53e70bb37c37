"""Lightning strategies of vr1, for a trainer's ``strategy``: in YAML by ``class_path`` or by their name there."""

from lightning.pytorch.strategies import StrategyRegistry

from vr1.strategies.fully_sharded import FullySharded

StrategyRegistry.register("fully_sharded", FullySharded, description="vr1's FSDP2", override=True)

__all__ = ["FullySharded"]
