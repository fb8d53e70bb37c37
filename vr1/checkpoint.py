"""What a checkpoint of vr1 holds beside Lightning's part, and what it leaves out."""

from dataclasses import asdict
from typing import Any

from vr1.policy.loading import Lora, PolicySource
from vr1.policy.model import Policy

_KEY = "vr1"
_BATCHES = ("ready", "started", "processed", "completed")


def add_run(checkpoint: dict[str, Any], run: dict[str, Any]) -> None:
    """Store what rebuilds the model without the configuration, and what a model card tells of the run.

    Args:
        checkpoint: the checkpoint that is being made.
        run: plain values, the settings of `PolicySource` as ``policy`` among them.
    """
    checkpoint[_KEY] = run


def run_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What `add_run` stored.

    Raises:
        ValueError: the checkpoint was not made by vr1, or by a version that did not store it.
    """
    if _KEY not in checkpoint:
        raise ValueError(
            "the checkpoint does not say which model it was trained from: it is not of vr1, or of an earlier version;"
            " resume it for one step with the configuration of its run, and take the checkpoint of that"
        )
    stored: dict[str, Any] = checkpoint[_KEY]
    return stored


def source_of(checkpoint: dict[str, Any]) -> PolicySource:
    """The `PolicySource` that a checkpoint's policy was loaded by.

    Example:
        >>> checkpoint = {}
        >>> add_run(checkpoint, {"policy": asdict(PolicySource(lora=Lora(rank=2)))})
        >>> source_of(checkpoint) == PolicySource(lora=Lora(rank=2))
        True
    """
    settings = dict(run_of(checkpoint)["policy"])
    lora = settings.pop("lora")
    return PolicySource(**settings, lora=None if lora is None else Lora(**lora))


def drop_base(checkpoint: dict[str, Any], policy: Policy, prefix: str = "policy.") -> None:
    """Leave the weights out that were never trained, where adapters are trained: the base is loaded by its name."""
    if not policy.has_adapters:
        return
    trained = {prefix + name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {name: value for name, value in state.items() if name in trained}


def check_weights(checkpoint: dict[str, Any], policy: Policy, source: PolicySource, prefix: str = "policy.") -> None:
    """Refuse weights that do not belong to the policy of these settings.

    Raises:
        ValueError: adapters where none are set, none where some are, or others than are set.
    """
    state = checkpoint["state_dict"]
    stored = checkpoint.get(_KEY, {}).get("policy", {})
    lora = None if source.lora is None else asdict(source.lora)
    if stored and (stored["lora"], stored["quantize"]) != (lora, source.quantize):
        raise ValueError(
            f"the checkpoint was made with policy.lora={stored['lora']}, policy.quantize={stored['quantize']}, and now"
            f" they are {lora} and {source.quantize}; set them as they were"
        )
    trained = {prefix + name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    if missing := sorted(trained - state.keys()):
        raise ValueError(
            f"the checkpoint has no weights for {len(missing)} of {len(trained)} trained tensors, such as {missing[0]};"
            " set policy.path and policy.lora as in the run that it comes from"
        )


def adapt_window(checkpoint: dict[str, Any], window: int) -> None:
    """Count the batches of Lightning's loops as those of another ``accumulate_grad_batches``.

    Args:
        checkpoint: the checkpoint that is being loaded; changed in place.
        window: batches per optimizer step now.
    """
    loop = checkpoint.get("loops", {}).get("fit_loop", {})
    states = loop.get("state_dict", {}).get("combined_loader", [])
    before = states[0]["window"] if states and "window" in states[0] else window
    if before == window:
        return
    for counts in (loop["epoch_loop.batch_progress"][part] for part in ("total", "current")):
        ready = counts["ready"] // before * window
        # A checkpoint made at the end of a batch has begun one more batch than it has completed.
        counts.update({name: ready - (counts["ready"] - counts[name]) for name in _BATCHES})
