"""The policy: the vision-language model that is trained, and its log-probs of completions.

In reading order: `loading` (which model, precision, adapters) makes a `Policy` (`policy`), which runs prompts and
completions through the model (`attention`, `architectures`) and scores completions (`logprobs`). `reference` is the
policy before training. `patches` holds all changes to transformers' models, those of `norms` and `adapters` included.
`tiny` writes a small untrained model.
"""

from vr1.policy.loading import EMBEDDED_MODEL, Lora, PolicySource
from vr1.policy.policy import Policy
from vr1.policy.reference import Reference

__all__ = ["EMBEDDED_MODEL", "Lora", "Policy", "PolicySource", "Reference"]
