"""Settings that the tests of ``vr1 plan`` share."""

from functools import partial

import pytest
import torch

from vr1.commands.plan.needs import Needs


@pytest.fixture
def needs(source):
    return Needs(
        policy=source,
        prompts=2,
        group_size=4,
        completion_tokens=32,
        max_prompt_tokens=256,
        reference=True,
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
    )
