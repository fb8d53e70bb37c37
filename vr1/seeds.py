"""The seed of a run, given once for everything that draws random numbers."""

import os


def run_seed(seed: int | None) -> int:
    """A component's own seed, or that of the whole run, or 0.

    Args:
        seed: the component's own; None takes what ``seed_everything`` was given, which Lightning keeps in the
            environment for all processes of a run.

    Example:
        >>> run_seed(7)
        7
    """
    return int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed
