"""The experience of an optimizer step, divided anew among batches and processes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def divide(pieces: Sequence[Sequence[dict[str, Any]]], window: int, world: int) -> list[list[dict[str, Any]]]:
    """The experience of one optimizer step, divided anew among batches and processes.

    Args:
        pieces: states of `Experience`, of each process for each batch, as they were saved.
        window: batches per optimizer step now.
        world: processes now.

    Returns:
        ``window`` lists of ``world`` states, in the same order of prompts.

    Raises:
        ValueError: the prompts cannot be divided evenly.

    Example:
        >>> from vr1.experience import Experience
        >>> state = Experience(
        ...     tokens=torch.tensor([[[7, 8]], [[9, 0]]]),
        ...     mask=torch.tensor([[[True, True]], [[True, False]]]),
        ...     advantages=torch.zeros(2, 1),
        ...     reference_log_probs=None,
        ... ).state_dict()
        >>> [[first, second]] = divide([[state]], window=1, world=2)
        >>> first["tokens"].tolist(), second["tokens"].tolist()
        ([[[7, 8]]], [[[9]]])
    """
    if len(pieces) == window and all(len(row) == world for row in pieces):
        return [list(row) for row in pieces]
    flat = [piece for row in pieces for piece in row]
    prompts = sum(len(piece["tokens"]) for piece in flat)
    if prompts % (window * world):
        raise ValueError(
            f"the checkpoint holds rollouts of {prompts} prompts, which {window} batches on {world} processes cannot"
            " share evenly: resume with the batch_size, accumulate_grad_batches and processes that it was made with"
        )
    size = prompts // (window * world)
    whole = {name: _concatenate([piece[name] for piece in flat]) for name in flat[0]}
    cut = [
        _trim({n: None if v is None else v[at : at + size] for n, v in whole.items()}) for at in range(0, prompts, size)
    ]
    return [cut[slot * world : (slot + 1) * world] for slot in range(window)]


def _concatenate(values: list[Tensor | None]) -> Tensor | None:
    tensors = [value for value in values if value is not None]
    if len(tensors) < len(values):
        return None
    if tensors[0].dim() == 2:
        return torch.cat(tensors)
    longest = max(value.shape[-1] for value in tensors)
    return torch.cat([torch.nn.functional.pad(value, (0, longest - value.shape[-1])) for value in tensors])


def _trim(state: dict[str, Any]) -> dict[str, Any]:
    """Without the columns that no completion of this part reaches."""
    reached = state["mask"].flatten(0, 1).any(0).nonzero()
    length = int(reached[-1]) + 1 if len(reached) else 1
    return {n: v[..., :length].clone() if v is not None and v.dim() == 3 else v for n, v in state.items()}
