"""Several prefixes as one.

Shape letters: B prompts, P prompt tokens, K key and value heads, E width of a head, D hidden size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from vr1.records import Prefix


def joined(parts: Sequence[Prefix], rows: Sequence[Tensor]) -> Prefix:
    """One prefix of several, whose prompts are the ``rows`` (int64) of the result."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.mask.shape[1] for part in parts)
    order = torch.cat(list(rows)).argsort()

    def together(layers: Sequence[list[Tensor]]) -> list[Tensor]:
        return [
            torch.cat([pad(part, (0, 0, width - part.shape[2], 0)) for part in one])[order]
            for one in zip(*layers, strict=True)
        ]

    return Prefix(
        keys=together([part.keys for part in parts]),
        values=together([part.values for part in parts]),
        state=torch.cat([part.state for part in parts])[order],
        mask=torch.cat([pad(part.mask, (width - part.mask.shape[1], 0)) for part in parts])[order],
        following=torch.cat([part.following for part in parts])[order],
    )
