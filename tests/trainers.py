"""Trainers that say nothing and write nothing but what a test asks for."""

import lightning.pytorch as pl


def trainer(folder, callbacks=(), **settings):
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "default_root_dir": folder,
    }
    return pl.Trainer(callbacks=list(callbacks), **(defaults | settings))
