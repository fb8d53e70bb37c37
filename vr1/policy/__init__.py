"""The policy: where it is loaded from, log-probs of completions, its reference."""

from vr1.policy.loading import EMBEDDED_MODEL, Lora, PolicySource
from vr1.policy.policy import Policy
from vr1.policy.reference import Reference

__all__ = ["EMBEDDED_MODEL", "Lora", "Policy", "PolicySource", "Reference"]
