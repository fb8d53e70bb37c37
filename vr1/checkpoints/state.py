"""What vr1 adds to a Lightning checkpoint, what it leaves out, and how it adapts to other batch sizes on resume."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import Parameter

from vr1.distributed import is_first
from vr1.errors import UserError
from vr1.policy.loading import Lora, PolicySource
from vr1.policy.policy import Policy

Mean = Callable[[Tensor], Tensor]

_KEY = "vr1"
_GRADIENTS = "vr1_gradients"
_BATCHES = ("ready", "started", "processed", "completed")


def add_run(checkpoint: dict[str, Any], run: dict[str, Any]) -> None:
    """Store what is needed to rebuild the model without its configuration, and for a model card.

    Args:
        checkpoint: changed in place.
        run: plain values, among them the settings of `PolicySource` as ``policy``.
    """
    checkpoint[_KEY] = run


def run_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What `add_run` stored.

    Raises:
        UserError: the checkpoint was not written by vr1, or by a version that did not store it.
    """
    if _KEY not in checkpoint:
        raise UserError(
            "the checkpoint does not say which model it was trained from: it is not from vr1, or from an earlier"
            " version; resume it for one step with the configuration of its run, and use the new checkpoint"
        )
    stored: dict[str, Any] = checkpoint[_KEY]
    return stored


def source_of(checkpoint: dict[str, Any]) -> PolicySource:
    """The `PolicySource` of a checkpoint's policy.

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
    """Remove weights that are not trained from a checkpoint of adapters: the base is loaded by its name.

    Args:
        checkpoint: changed in place.
        policy: the policy that is saved.
        prefix: of the policy's weights in the checkpoint.
    """
    if not policy.has_adapters:
        return
    trained = {prefix + name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {name: value for name, value in state.items() if name in trained}


def check_weights(checkpoint: dict[str, Any], policy: Policy, source: PolicySource, prefix: str = "policy.") -> None:
    """Check that the weights of a checkpoint belong to a policy.

    Args:
        checkpoint: the checkpoint that is loaded.
        policy: the policy that it is loaded into.
        source: the settings of that policy.
        prefix: of the policy's weights in the checkpoint.

    Raises:
        UserError: the checkpoint has adapters and the settings have none, the reverse, or they differ.
    """
    state = checkpoint["state_dict"]
    stored = checkpoint.get(_KEY, {}).get("policy", {})
    lora = None if source.lora is None else asdict(source.lora)
    if stored and (stored["lora"], stored["quantize"]) != (lora, source.quantize):
        raise UserError(
            f"the checkpoint was made with policy.lora={stored['lora']}, policy.quantize={stored['quantize']}, but now"
            f" they are {lora} and {source.quantize}; set them as they were"
        )
    trained = {prefix + name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    if missing := sorted(trained - state.keys()):
        raise UserError(
            f"the checkpoint has no weights for {len(missing)} of {len(trained)} trained tensors, such as {missing[0]};"
            " set policy.path and policy.lora as in its run"
        )


def adapt_window(checkpoint: dict[str, Any], window: int) -> None:
    """Convert the batch counts of Lightning's loops to another ``accumulate_grad_batches``.

    Args:
        checkpoint: the checkpoint that is loaded; changed in place.
        window: batches per optimizer step now.
    """
    loop = checkpoint.get("loops", {}).get("fit_loop", {})
    states = loop.get("state_dict", {}).get("combined_loader", [])
    before = states[0]["window"] if states and "window" in states[0] else window
    if before == window:
        return
    for counts in (loop["epoch_loop.batch_progress"][part] for part in ("total", "current")):
        ready = counts["ready"] // before * window
        # A checkpoint written at the end of a batch has started one more batch than it has completed.
        counts.update({name: ready - (counts["ready"] - counts[name]) for name in _BATCHES})


def is_within_step(checkpoint: dict[str, Any]) -> bool:
    """Whether a checkpoint was written between two batches of an optimizer step.

    Args:
        checkpoint: of Lightning, with the state of a `vr1.data.sampler.TrainingLoader`.
    """
    states = checkpoint.get("loops", {}).get("fit_loop", {}).get("state_dict", {}).get("combined_loader", [])
    return bool(states) and "window" in states[0] and states[0]["batches"] % states[0]["window"] > 0


def add_gradients(checkpoint: dict[str, Any], parameters: Iterable[tuple[str, Parameter]], mean: Mean) -> None:
    """Store the gradients that the first batches of an optimizer step have summed up; to be called by all processes.

    Args:
        checkpoint: changed in place.
        parameters: (name, parameter) pairs of what is trained.
        mean: the mean of a tensor over the processes, each of which has gradients of its own batches.
    """
    gradients = {}
    for name, parameter in parameters:
        if parameter.grad is None:
            continue
        gradient = parameter.grad.detach()
        # Those of a sharded model are means already.
        whole = gradient.full_tensor() if isinstance(gradient, DTensor) else mean(gradient.clone())
        # The first process writes the file, or of a folder of shards the part that is not sharded.
        if is_first():
            gradients[name] = whole.cpu()
    checkpoint[_GRADIENTS] = gradients


def gradients_of(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """What `add_gradients` stored, by the name of the parameter; empty between two optimizer steps.

    Raises:
        UserError: the checkpoint lies within an optimizer step, but has no gradients.
    """
    if is_within_step(checkpoint) and _GRADIENTS not in checkpoint:
        raise UserError(
            "the checkpoint is in the middle of an optimizer step, and an earlier version of vr1 has not stored its"
            " gradients: resume from an earlier one"
        )
    stored: dict[str, Tensor] = checkpoint.get(_GRADIENTS, {})
    return stored


def restore_gradients(parameters: Iterable[tuple[str, Parameter]], gradients: Mapping[str, Tensor]) -> None:
    """Continue an optimizer step with the gradients of its first batches.

    Args:
        parameters: (name, parameter) pairs of what is trained.
        gradients: of `gradients_of`.
    """
    for name, parameter in parameters:
        if name not in gradients:
            continue
        gradient = gradients[name].to(parameter.device)
        if isinstance(parameter, DTensor):
            # Without a source rank nothing is sent: each process has the full tensor.
            gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.grad = gradient


def continue_epoch(checkpoint: dict[str, Any]) -> None:
    """Correct the counts of Lightning's loops in a checkpoint of a finished training, so that a longer one resumes it.

    Lightning counts an epoch as finished where the steps ran out in it, and would begin the next one. After an epoch
    without validation it still counts the batches of that epoch, so that the next one would be over at once.

    Args:
        checkpoint: the checkpoint that is loaded; changed in place.
    """
    loop = checkpoint.get("loops", {}).get("fit_loop", {})
    states = loop.get("state_dict", {}).get("combined_loader", [])
    if not states or "batches_of_epoch" not in states[0]:
        return
    epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    if epochs["total"]["processed"] < epochs["total"]["started"]:
        return
    # Lightning knows the last batch too, but not in an epoch that was itself resumed.
    cut = 0 < states[0]["batches"] < states[0]["batches_of_epoch"] and not batches["is_last_batch"]
    for counts in (epochs["total"], epochs["current"]):
        counts["processed"] = counts["completed"] = counts["started"] - int(cut)
    checkpoint["epoch"] = epochs["current"]["processed"]
    if not cut:
        batches["current"].update(dict.fromkeys(_BATCHES, 0))
        batches["is_last_batch"] = False


def reshard_rollouts(pieces: Sequence[Sequence[dict[str, Any]]], window: int, world: int) -> list[list[dict[str, Any]]]:
    """Distribute the saved rollouts of one optimizer step among the present batches and processes.

    Args:
        pieces: states of `RolloutBatch`: for each batch, one of each process, as they were saved.
        window: batches per optimizer step now.
        world: processes now.

    Returns:
        ``window`` lists of ``world`` states, with the prompts in the same order.

    Raises:
        UserError: the prompts cannot be distributed evenly.

    Example:
        >>> from vr1.types import RolloutBatch
        >>> state = RolloutBatch(
        ...     tokens=torch.tensor([[[7, 8]], [[9, 0]]]),
        ...     mask=torch.tensor([[[True, True]], [[True, False]]]),
        ...     advantages=torch.zeros(2, 1),
        ...     sampler_log_probs=torch.zeros(2, 1, 2),
        ...     reference_log_probs=None,
        ... ).state_dict()
        >>> [[first, second]] = reshard_rollouts([[state]], window=1, world=2)
        >>> first["tokens"].tolist(), second["tokens"].tolist()
        ([[[7, 8]]], [[[9]]])
    """
    if len(pieces) == window and all(len(row) == world for row in pieces):
        return [list(row) for row in pieces]
    flat = [piece for row in pieces for piece in row]
    prompts = sum(len(piece["tokens"]) for piece in flat)
    if prompts % (window * world):
        raise UserError(
            f"the checkpoint contains rollouts of {prompts} prompts, which cannot be distributed evenly among {window}"
            f" batches on {world} processes; resume with the batch_size, accumulate_grad_batches and number of"
            " processes that it was made with"
        )
    size = prompts // (window * world)
    joined = {name: _concatenate([piece[name] for piece in flat]) for name in flat[0]}
    parts = [
        _trim({name: None if value is None else value[start : start + size] for name, value in joined.items()})
        for start in range(0, prompts, size)
    ]
    return [parts[slot * world : (slot + 1) * world] for slot in range(window)]


def _concatenate(values: list[Tensor | None]) -> Tensor | None:
    tensors = [value for value in values if value is not None]
    if len(tensors) < len(values):
        return None
    if tensors[0].dim() == 2:
        return torch.cat(tensors)
    longest = max(value.shape[-1] for value in tensors)
    return torch.cat([torch.nn.functional.pad(value, (0, longest - value.shape[-1])) for value in tensors])


def _trim(state: dict[str, Any]) -> dict[str, Any]:
    """Remove the columns that no completion of this part reaches."""
    reached = state["mask"].flatten(0, 1).any(0).nonzero()
    length = int(reached[-1]) + 1 if len(reached) else 1
    return {n: v[..., :length].clone() if v is not None and v.dim() == 3 else v for n, v in state.items()}
