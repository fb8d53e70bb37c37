"""Warnings of Lightning that do not concern the callbacks are ignored."""

import pytest

IGNORED = (
    "ignore:.*isinstance.treespec, LeafSpec",
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",
    "ignore:Be aware that when using `ckpt_path`",
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:The number of training batches",
    "ignore:Checkpoint directory .* exists and is not empty",
)


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/callbacks" in item.path.as_posix():
            for notice in IGNORED:
                # Prepended, so that a test's own filter has precedence.
                item.add_marker(pytest.mark.filterwarnings(notice), append=False)
