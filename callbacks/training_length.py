"""How many optimizer steps a fit is going to take."""

import math

import lightning.pytorch as pl


def total_steps(trainer: "pl.Trainer") -> int | None:
    """Optimizer steps from the beginning of training to its end; None where nothing bounds them.

    ``trainer.estimated_stepping_batches`` says the same, but sets the training data up as a side effect, which drops
    the data loader's restored state on resume. This function only reads, so it is of use from ``on_train_start`` on.

    Args:
        trainer: a trainer that is fitting and whose training data is set up.

    Returns:
        The smaller of ``max_steps`` and ``max_epochs`` times the optimizer steps of an epoch.
    """
    bounds: list[int] = []
    if trainer.max_steps != -1:
        bounds.append(trainer.max_steps)
    batches = trainer.num_training_batches
    if trainer.max_epochs not in (None, -1) and math.isfinite(batches):
        assert trainer.max_epochs is not None
        bounds.append(trainer.max_epochs * math.ceil(batches / trainer.accumulate_grad_batches))
    return min(bounds) if bounds else None
