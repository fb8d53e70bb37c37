"""What differs between the model classes of transformers, one small class for each kind."""

from vr1.policy.architectures.base import Architecture
from vr1.policy.architectures.choice import architecture_of

__all__ = ["Architecture", "architecture_of"]
