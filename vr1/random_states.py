"""The states of the random generators that everything shares (dropout draws from them), fit for a checkpoint."""

import random
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's generators, in types that load without running code.

    Example:
        >>> states = random_states()
        >>> drawn = torch.rand(2)
        >>> restore_random_states(states)
        >>> bool((torch.rand(2) == drawn).all())
        True
    """
    name, keys, *rest = np.random.get_state(legacy=True)  # type: ignore[misc]
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": [version, list(numbers), gauss],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Put the generators back into the states that `random_states` returned."""
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
