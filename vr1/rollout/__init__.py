"""Rollouts: prompts -> sampled completions."""

from vr1.rollout.generate import generate
from vr1.rollout.sampling import Sampling

__all__ = ["Sampling", "generate"]
