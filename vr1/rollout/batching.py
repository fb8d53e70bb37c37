"""Prompts that are decoded together: batches joined, divided into parts that fit in memory, and their rollouts.

A row is one completion. The random numbers of a completion depend on its record alone, so its tokens do not depend on
what it is decoded with.

Shape letters: B prompts, P prompt tokens, G group size, C completion tokens.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vr1.prompts import PromptBatch
from vr1.types import Prefix, Rollout

__all__ = [
    "consecutive",
    "join_prompts",
    "join_rollouts",
    "replace_groups",
    "select_prefix",
    "select_prompts",
    "select_rollout",
    "split_rollout",
]


def join_prompts(batches: Sequence[PromptBatch]) -> list[tuple[PromptBatch, list[int]]]:
    """Join batches of prompts.

    Args:
        batches: on one device.

    Returns:
        One batch of all prompts in their order, with the sizes of those that it is made of; or several, where a
        processor has padded the images of two batches to different sizes.
    """
    groups: list[list[PromptBatch]] = []
    for batch in batches:
        if not groups or _layout(groups[-1][0]) != _layout(batch):
            groups.append([])
        groups[-1].append(batch)
    return [(_join(group), [len(batch) for batch in group]) for group in groups]


def _layout(batch: PromptBatch) -> Any:
    sizes = {name: value.shape[1:] for name, value in batch.vision.items()}
    return batch.types_name, batch.markers, sizes, bool(batch.image_features)


def _join(batches: Sequence[PromptBatch]) -> PromptBatch:
    """Batches with one layout as one, padded on the left to one width."""
    if len(batches) == 1:
        return batches[0]
    width = max(batch.tokens.shape[1] for batch in batches)

    def joined(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([pad(part, (width - part.shape[1], 0)) for part in parts])

    return PromptBatch(
        records=[record for batch in batches for record in batch.records],
        instructions=[text for batch in batches for text in batch.instructions],
        input_sizes=[size for batch in batches for size in batch.input_sizes],
        tokens=joined([batch.tokens for batch in batches]),
        mask=joined([batch.mask for batch in batches]),
        vision={name: torch.cat([batch.vision[name] for batch in batches]) for name in batches[0].vision},
        token_types=joined([batch.token_types for batch in batches]),
        types_name=batches[0].types_name,
        image_tokens=[count for batch in batches for count in batch.image_tokens],
        image_counts=[count for batch in batches for count in batch.image_counts],
        markers=batches[0].markers,
        image_features=tuple(image for batch in batches for image in batch.image_features),
    )


def select_prompts(prompts: PromptBatch, rows: Sequence[int]) -> PromptBatch:
    """Some of B prompts.

    Args:
        prompts: B prompts.
        rows: indices of prompts.
    """
    width = int(prompts.mask[list(rows)].sum(1).max())

    def selected(values: Tensor) -> Tensor:
        return values[list(rows), values.shape[1] - width :]

    images = [prompts.vision_of(row) for row in rows]
    return PromptBatch(
        records=[prompts.records[row] for row in rows],
        instructions=[prompts.instructions[row] for row in rows],
        input_sizes=[prompts.input_sizes[row] for row in rows],
        tokens=selected(prompts.tokens),
        mask=selected(prompts.mask),
        vision={name: torch.cat([image[name] for image in images]) for name in prompts.vision},
        token_types=selected(prompts.token_types),
        types_name=prompts.types_name,
        image_tokens=[prompts.image_tokens[row] for row in rows],
        image_counts=[prompts.image_counts[row] for row in rows],
        markers=prompts.markers,
        image_features=tuple(prompts.image_features[row] for row in rows) if prompts.image_features else (),
    )


def select_prefix(prefix: Prefix, rows: Sequence[int]) -> Prefix:
    """The prefix of some of B prompts.

    Args:
        prefix: of B prompts.
        rows: indices of prompts.
    """
    index = torch.tensor(list(rows), device=prefix.mask.device)
    return Prefix(
        keys=[keys[index] for keys in prefix.keys],
        values=[values[index] for values in prefix.values],
        state=prefix.state[index],
        mask=prefix.mask[index],
        next_position=prefix.next_position[index],
    )


def select_rollout(rollout: Rollout, rows: Sequence[int]) -> Rollout:
    """The completions of some prompts, as many tokens wide as the longest of them; without a prefix.

    Args:
        rollout: of B prompts.
        rows: indices of prompts.
    """
    index = torch.tensor(list(rows), device=rollout.tokens.device)
    width = int(rollout.mask[index].sum(-1).max())
    return Rollout(
        tokens=rollout.tokens[index, :, :width],
        mask=rollout.mask[index, :, :width],
        finished=rollout.finished[index],
        log_probs=rollout.log_probs[index, :, :width],
        texts=[rollout.texts[row] for row in rows],
        seconds=rollout.seconds,
    )


def consecutive(sizes: Sequence[int]) -> list[range]:
    """The rows of consecutive batches.

    Args:
        sizes: number of prompts of each batch.

    Example:
        >>> consecutive([2, 3])
        [range(0, 2), range(2, 5)]
    """
    return [range(end - size, end) for end, size in zip(accumulate(sizes), sizes, strict=True)]


def split_rollout(rollout: Rollout, sizes: Sequence[int]) -> list[Rollout]:
    """Divide a rollout into those of consecutive batches of prompts.

    Args:
        rollout: of B prompts.
        sizes: number of prompts of each batch, B in all.
    """
    return [rollout] if len(sizes) == 1 else [select_rollout(rollout, rows) for rows in consecutive(sizes)]


def join_rollouts(parts: Sequence[Rollout], prefix: Prefix | None = None) -> Rollout:
    """Join the rollouts of several batches of prompts.

    Args:
        parts: the rollouts.
        prefix: of all of their prompts.
    """
    length = max(part.tokens.shape[-1] for part in parts)

    def joined(values: Sequence[Tensor]) -> Tensor:
        return torch.cat([pad(value, (0, length - value.shape[-1])) for value in values])

    return Rollout(
        tokens=joined([part.tokens for part in parts]),
        mask=joined([part.mask for part in parts]),
        finished=torch.cat([part.finished for part in parts]),
        log_probs=joined([part.log_probs for part in parts]),
        texts=[texts for part in parts for texts in part.texts],
        seconds={name: sum(part.seconds[name] for part in parts) for name in parts[0].seconds},
        prefix=prefix,
    )


def replace_groups(rollout: Rollout, resampled: Rollout, groups: Tensor) -> Rollout:
    """A rollout with the groups of another where the mask ``groups`` ``[B]`` is true."""
    length = max(rollout.tokens.shape[-1], resampled.tokens.shape[-1])

    def padded(values: Tensor) -> Tensor:
        return pad(values, (0, length - values.shape[-1]))

    rows = groups.to(rollout.tokens.device)
    return Rollout(
        tokens=torch.where(rows[:, None, None], padded(resampled.tokens), padded(rollout.tokens)),
        mask=torch.where(rows[:, None, None], padded(resampled.mask), padded(rollout.mask)),
        finished=torch.where(rows[:, None], resampled.finished, rollout.finished),
        log_probs=torch.where(rows[:, None, None], padded(resampled.log_probs), padded(rollout.log_probs)),
        texts=[
            new if is_new else old
            for old, new, is_new in zip(rollout.texts, resampled.texts, groups.tolist(), strict=True)
        ],
        seconds={part: value + resampled.seconds[part] for part, value in rollout.seconds.items()},
        prefix=rollout.prefix,
    )
