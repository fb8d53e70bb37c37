"""One row per prompt: [prompt | completion 1 | ... | completion G], each completion seeing the prompt and itself only.

The image and the prompt are then computed once per group, not G times, and padding exists at the row's end only.

Shape letters: B prompts, P prompt tokens, G group size, C completion tokens, L tokens of a packed row, T scored tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PackedRows:
    """Where every token of a batch of packed rows comes from.

    Attributes:
        tokens: ``[B, L]`` int64, padded on the right.
        segments: ``[B, L]`` int64: 0 prompt, g + 1 completion g, -1 padding.
        offsets: ``[B, L]`` int64: place of a token within its segment.
        rows: ``[T]`` int64, the row of each scored token, in the order of ``completion_mask``'s true entries.
        columns: ``[T]`` int64, the column whose hidden state predicts that token.
        prompt_lengths: ``[B]`` int64, tokens of each prompt, with which its row begins.
        completion_columns: ``[B, G, C]`` int64, the column of each completion token where ``mask`` is true.
        mask: ``[B, G, C]`` bool, the tokens of the completions.
    """

    tokens: Tensor
    segments: Tensor
    offsets: Tensor
    rows: Tensor
    columns: Tensor
    prompt_lengths: Tensor
    completion_columns: Tensor
    mask: Tensor


def pack(prompt_tokens: Tensor, prompt_mask: Tensor, tokens: Tensor, mask: Tensor) -> PackedRows:
    """Lay prompts and their completions out in packed rows.

    Args:
        prompt_tokens: ``[B, P]`` int64.
        prompt_mask: ``[B, P]`` bool, padding anywhere.
        tokens: ``[B, G, C]`` int64.
        mask: ``[B, G, C]`` bool; the true entries of a completion stand at its beginning.

    Example:
        >>> one = torch.ones(1, 2, dtype=torch.bool)
        >>> mask = torch.tensor([[[True, True], [True, False]]])
        >>> rows = pack(torch.tensor([[7, 8]]), one, torch.tensor([[[1, 2], [3, 0]]]), mask)
        >>> rows.tokens.tolist(), rows.segments.tolist(), rows.columns.tolist()
        ([[7, 8, 1, 2, 3]], [[0, 0, 1, 1, 2]], [1, 2, 1])
    """
    batch, group, length = tokens.shape
    device = tokens.device
    flat = torch.cat([prompt_tokens, tokens.reshape(batch, -1)], dim=1)
    keep = torch.cat([prompt_mask, mask.reshape(batch, -1)], dim=1)
    segment = torch.arange(1, group + 1, device=device).repeat_interleave(length).expand(batch, -1)
    segment = torch.cat([torch.zeros_like(prompt_tokens), segment], dim=1)
    prompt_offsets = prompt_mask.long().cumsum(1) - 1
    completion_offsets = torch.arange(length, device=device).repeat(group).expand(batch, -1)
    offset = torch.cat([prompt_offsets, completion_offsets], dim=1)

    # A stable sort by "is padding" moves the kept tokens to the front in their order.
    order = torch.sort((~keep).long(), dim=1, stable=True).indices[:, : int(keep.sum(1).max())]
    kept = keep.gather(1, order)
    segments = torch.where(kept, segment.gather(1, order), -1)

    column_of = torch.zeros_like(flat).scatter_(1, order, torch.arange(order.shape[1], device=device).expand_as(order))
    completion_columns = column_of[:, prompt_tokens.shape[1] :].reshape(batch, group, length)
    # The first token of a completion is predicted by the prompt's last; every other one by the token before it.
    first = torch.arange(length, device=device) == 0
    predictor = torch.where(first, prompt_mask.sum(1)[:, None, None] - 1, completion_columns - 1)
    rows = torch.arange(batch, device=device)[:, None, None].expand_as(mask)
    return PackedRows(
        tokens=torch.where(kept, flat.gather(1, order), 0),
        segments=segments,
        offsets=torch.where(kept, offset.gather(1, order), 0),
        rows=rows[mask],
        columns=predictor[mask],
        prompt_lengths=prompt_mask.sum(1),
        completion_columns=completion_columns,
        mask=mask,
    )
