"""What vr1 changes in the model that an engine of vLLM runs.

Version 0.32 computes the rotary positions of Qwen's vision tower with the base 10,000, whatever the configuration says.
An engine in this process is given `VisionRope`; a server is started with `WorkerExtension`, whose methods it can call.

Private parts of vLLM that this file relies on, tried with 0.32: ``visual.rotary_pos_emb`` and ``_rope_by_thw_cache`` of
Qwen's models, and ``model_runner`` of a worker.
"""

from typing import Any

__all__ = ["VisionRope", "WorkerExtension", "vision_rope_base"]

# What vLLM takes for every model.
_FIXED = 10_000.0


def vision_rope_base(config: Any) -> float | None:
    """The base of the vision tower's rotary positions where vLLM would take another one; None where it does not.

    Args:
        config: the configuration of the model.

    Example:
        >>> from vr1.policy import PolicySource
        >>> vision_rope_base(PolicySource().config())
        10.0
    """
    vision = getattr(config, "vision_config", None)
    base = (getattr(vision, "rope_parameters", None) or {}).get("rope_theta")
    return None if base is None or float(base) == _FIXED else float(base)


class VisionRope:
    """Sets the base of rotary positions of a model; a function in a form that can be sent to the process of an engine.

    Args:
        base: of `vision_rope_base`.
    """

    def __init__(self, base: float) -> None:
        self.base = base

    def __call__(self, model: Any) -> None:
        """Change the model of an engine.

        Args:
            model: vLLM's model.
        """
        rope = getattr(getattr(model, "visual", None), "rotary_pos_emb", None)
        if rope is None or rope.base == self.base:
            return
        rope.base = self.base
        rope.cos_sin_cache = rope._compute_cos_sin_cache().to(rope.cos_sin_cache)
        cache = getattr(model.visual, "_rope_by_thw_cache", None)
        if cache is not None:
            cache.clear()


class WorkerExtension:
    """Methods that the workers of a server get (``--worker-extension-cls``)."""

    model_runner: Any

    def set_vision_rope(self, base: str) -> None:
        """Set the base of the vision tower's rotary positions.

        Args:
            base: a number as text, as the server passes it on.
        """
        VisionRope(float(base))(self.model_runner.get_model())
