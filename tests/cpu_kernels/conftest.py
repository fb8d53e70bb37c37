"""These tests need a C compiler."""

import pytest

from vr1.cpu_kernels.library import compiler


@pytest.fixture(autouse=True)
def _compiler():
    if compiler() is None:
        pytest.skip("no C compiler")
