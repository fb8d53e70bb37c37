"""The seed of a run, and the states of the random number generators for a checkpoint."""

import os
import random
from typing import Any

import numpy as np
import torch


def run_seed(seed: int | None) -> int:
    """A component's own seed, or that of the whole run, or 0.

    Args:
        seed: the component's own; None takes the seed of ``seed_everything``, which Lightning stores in the environment
            of all processes of a run.

    Example:
        >>> run_seed(7)
        7
    """
    return int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed


def random_states() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's random number generators, as tensors and plain values.

    Example:
        >>> states = random_states()
        >>> drawn = torch.rand(2)
        >>> restore_random_states(states)
        >>> bool((torch.rand(2) == drawn).all())
        True
    """
    state: Any = np.random.get_state(legacy=True)
    name, keys, *rest = state
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": [version, list(numbers), gauss],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Set the generators to states that `random_states` returned.

    Those of CUDA are set only if the number of devices is the same.
    """
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
