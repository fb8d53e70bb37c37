"""``vr1 plan``: the memory that a training needs, from its configuration alone, without weights.

In reading order: `needs` reads the settings, `models` knows the sizes of released models, `shapes` makes the model and
the largest batch without content, `predict` runs the package's own prefill, sampling, loss and backward on them and
counts bytes with `live_bytes`, `fit` compares with a GPU and says what to change, `command` prints. What the runtime
decides (capacity of the cache, reuse of the prefix, chunks of logits, copies of the reference) comes from the code that
decides it.
"""
