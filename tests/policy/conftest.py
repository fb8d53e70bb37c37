"""With and without the C functions of `vr1.cpu_kernels`."""

import pytest

from vr1.cpu_kernels import completion_attention, library, training


def forget_libraries():
    for function in (library.load_library, training._functions, completion_attention._functions):
        function.cache_clear()


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setenv("CC", "off")
    forget_libraries()
    yield
    forget_libraries()


@pytest.fixture(params=["C", "torch"])
def either(request):
    """A test with it runs twice: by C functions where there is a compiler, and by torch's operators."""
    if request.param == "torch":
        request.getfixturevalue("no_compiler")
    elif library.compiler() is None:
        pytest.skip("no C compiler")
    return request.param
