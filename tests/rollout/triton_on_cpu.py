"""Triton's kernels without a GPU: interpreted, and compiled without being run.

Private parts of Triton that this file relies on, tried with 3.6 and 3.9: ``_patch_lang`` and ``InterpretedFunction`` of
its interpreter, ``JITFunction``, and the arguments of ``ASTSource``.
"""

from contextlib import contextmanager

import pytest
import torch

from vr1.rollout.kernels import attention, layers

KERNELS = {
    attention: ("_rotate_and_store", "_attend_prompts", "_attend_own"),
    layers: ("_rms_norm", "_gated"),
}


@contextmanager
def interpreted_kernels():
    """The kernels run on a CPU meanwhile, in numpy. 16 bits only as float16: bfloat16 is broken in the interpreter.

    ``TRITON_INTERPRET`` is read where functions are decorated, and other packages may have imported Triton before. So
    what has been decorated is replaced, and put back. Patch the kernels further by what this yields: a fixture
    ``monkeypatch``, undone later, would put back kernels that are interpreted.
    """
    import triton.language as tl
    from triton.runtime import interpreter
    from triton.runtime.jit import JITFunction

    class Function(interpreter.InterpretedFunction):
        """One that a kernel calls; without patching the language once more, which is never taken back."""

        def __call__(self, *args, **kwargs):
            return self.rewrite()(*args, **kwargs)

    before, scopes = {name: attention.__dict__[name] for name in KERNELS[attention]}, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for module in (tl.standard, tl, *KERNELS):
            for name, value in list(vars(module).items()):
                if isinstance(value, JITFunction):
                    patch.setattr(module, name, Function(value.fn))
        try:
            scopes += [interpreter._patch_lang(function.fn) for function in (before["_attend_own"], tl.standard.sum)]
            _probe(interpreter)
            yield patch
        finally:
            for scope in reversed(scopes):
                scope.restore()


def _probe(interpreter):
    states, place = torch.ones(1, 1, 16), torch.zeros(1, dtype=torch.int32)
    own = torch.zeros(2, 1, 1, 1, 1, 16)
    try:
        attention.attend(states, states, states, place, place, own, place, place, 1.0)
    except interpreter.InterpreterError as error:
        if "0-dimensional" not in str(error):
            raise
        pytest.skip("this version of Triton cannot interpret with this version of numpy, 2.4 or later")


class Launches:
    """Stands for a kernel and notes its launches.

    Args:
        kernel: is launched too; None only notes.
    """

    def __init__(self, kernel=None):
        self.kernel, self.grids, self.calls = kernel, [], []

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            self.grids.append(grid)
            self.calls.append((args, kwargs))
            if self.kernel is not None:
                self.kernel[grid](*args, **kwargs)

        return launch


def compiled(kernel, call, capability):
    """A kernel compiled for a generation of GPUs with the types, alignments and constants of a launch.

    Args:
        kernel: as it was decorated.
        call: arguments and keywords of the launch, noted by `Launches`.
        capability: of the GPUs, such as 80.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    args, keywords = call
    options = {name: keywords[name] for name in ("num_warps", "num_stages") if name in keywords}
    constants = {name: value for name, value in keywords.items() if name not in options}
    kinds = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int32: "i32", torch.int64: "i64"}
    signature, aligned = {}, {}
    for number, (name, value) in enumerate(zip(kernel.arg_names, args, strict=False)):
        is_tensor = isinstance(value, torch.Tensor)
        signature[name] = f"*{kinds[value.dtype]}" if is_tensor else "i32" if isinstance(value, int) else "fp32"
        # Tensors begin at such an address in practice; the launch of an odd number compiles another variant.
        if is_tensor or (isinstance(value, int) and value % 16 == 0):
            aligned[(number,)] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(constants, "constexpr")
    assert list(signature) == list(kernel.arg_names)
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, constexprs=places, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
