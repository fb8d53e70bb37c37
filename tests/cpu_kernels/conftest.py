"""These tests need a C compiler."""

import pytest
import torch

from vr1.cpu_kernels.library import compiler


@pytest.fixture(autouse=True)
def _compiler():
    if compiler() is None:
        pytest.skip("no C compiler")


@pytest.fixture(params=[1, 3], ids=lambda count: f"{count} threads")
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
