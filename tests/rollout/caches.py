"""Caches of rollouts whose steps are computed by kernels: noted while they are used, and against those by torch."""

import torch

from vr1.policy.attention import Scores
from vr1.rollout import shared
from vr1.types import Prefix

# After some tokens, which rows stay: gaps in a group, prompts without any row, one row alone.
LEAVING = [
    {2: [0, 1, 3, 4, 6, 8, 10], 4: [0, 2, 4, 6], 6: [1, 3]},
    {2: [1, 3, 4, 5, 9, 10], 4: [1, 2, 3], 6: [2]},
]


def noted_caches(monkeypatch, kind):
    """The caches of all rollouts by kernels from now on, of a kind; ``selected`` counts how often rows have left."""
    caches = []

    class Noted(kind):
        selected = 0

        def __init__(self, *arguments):
            super().__init__(*arguments)
            caches.append(self)

        def select(self, rows):
            super().select(rows)
            self.selected += 1

    monkeypatch.setattr(shared, "kernel_cache", lambda _: Noted)
    return caches


def assert_equal_attention(kinds, leaving, width, length, tokens):
    """Two kinds of caches compute the same, for four prompts of three rows, of which some leave.

    Args:
        kinds: the classes.
        leaving: see `LEAVING`.
        width: of the heads.
        length: of the prompts.
        tokens: of each completion.
    """
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(shape, generator=generator)

    mask = torch.arange(length) >= torch.tensor([0, 3, 1, 7])[:, None]
    prefix = Prefix(
        keys=[drawn(4, 2, length, width) for _ in range(2)],
        values=[drawn(4, 2, length, width) for _ in range(2)],
        state=drawn(4, 1),
        mask=mask,
        next_position=mask.sum(1),
    )
    caches, rows = [kind(prefix, 3) for kind in kinds], 12
    for token in range(tokens):
        for layer in range(2):
            # As adapters return them: parts of longer rows, which are changed in place.
            new, cosine, sine = drawn(rows, 9, width), drawn(rows, 1, width), drawn(rows, 1, width)
            results = [one.rotate_and_attend(layer, new.clone()[:, :8], cosine, sine, Scores(0.3)) for one in caches]
            torch.testing.assert_close(*results)
        if token in leaving:
            rows = len(leaving[token])
            for one in caches:
                one.select(torch.tensor(leaving[token]))
