"""What a training will take of memory, from its configuration alone: no weights are loaded, nothing is computed."""
