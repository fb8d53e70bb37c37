"""An emulation of CUDA graphs on a CPU, as strict as they are: `EmulatedCapture`.

Recording a step runs it, notes every operator with the very tensors that it read and wrote, and then puts back whatever
the step has changed outside of itself: capturing runs nothing. A replay runs the same operators on the same tensors.
What a real graph repeats without a look is repeated here: numbers of the host, shapes and branches. What it forbids
raises here: reading a value on the host, shapes that depend on values. Tensors from outside are known by their memory
alone, so that a replay fails if nobody has kept them.

Private parts of torch that this file relies on, tried with 2.15: ``torch.utils._python_dispatch``,
``torch.utils._pytree`` and weak references to storages.
"""

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

# Operators that hand a value or a shape of it to the host.
_READS = {
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim"),
    *("unique_consecutive", "bincount", "repeat_interleave"),
}
# The same by methods that read memory without an operator, on a CPU.
_METHODS = {Tensor.tolist, Tensor.numpy, Tensor.__bool__, Tensor.item, Tensor.cpu, Tensor.__array__}


class HostReadError(RuntimeError):
    """A step read a value of the device while it was recorded."""


class EmulatedCapture:
    """Records steps as `vr1.rollout.graphs.CudaCapture` does.

    Attributes:
        warm: steps that were run to warm up.
        captured: steps that were recorded.
        replayed: steps that were replayed.
    """

    def __init__(self):
        self.warm = self.captured = self.replayed = 0

    def warm_up(self, step):
        self.warm += 1
        step()

    def capture(self, step):
        recording = _Recording()
        with _RefusedMethods(), recording:
            logits = step()
        recording.put_back()
        self.captured += 1

        def replay():
            self.replayed += 1
            recording.replay()
            return logits

        return replay


class _RefusedMethods(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in _METHODS:
            raise HostReadError(f"operation not permitted when a stream is capturing: {function.__name__}")
        return function(*args, **(kwargs or {}))


class _Outside:
    """A tensor that existed before the recording, without keeping it alive."""

    def __init__(self, tensor):
        self.storage = StorageWeakRef(tensor.untyped_storage())
        self.dtype, self.layout = tensor.dtype, (tensor.storage_offset(), tensor.shape, tensor.stride())

    def tensor(self):
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        if storage is None:
            raise RuntimeError("the graph reads memory that was freed after it was captured")
        return torch.empty(0, dtype=self.dtype).set_(storage, *self.layout)


class _Recording(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self._calls = []
        # Tensors made by the step, which belong to the graph, by address; alive, so that no other one gets it.
        self._own = {}
        self._changed = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            isinstance(part, Tensor) and part.dtype == torch.bool for part in args[1]
        )
        # With a number of repeats, unlike with a tensor of them, nothing is read.
        if (name in _READS and func._overloadname != "self_int") or masks:
            raise HostReadError(f"operation not permitted when a stream is capturing: {name}")
        self._save_what_it_changes(func, args, kwargs)
        inputs = tree_map_only(Tensor, self._noted, (args, kwargs))
        known = {_address(tensor) for tensor in _leaves((args, kwargs), Tensor)}
        result = func(*args, **kwargs)
        for tensor in _leaves(result, Tensor):
            # What is neither an input nor a view of one is made by the step.
            if _address(tensor) not in known:
                self._own[_address(tensor)] = tensor
        # Operators such as `to` and `reshape` are called views, and copy or not.
        if not func.is_view or any(_address(tensor) not in known for tensor in _leaves(result, Tensor)):
            self._calls.append((func, *inputs, [self._noted(tensor) for tensor in _leaves(result, Tensor)]))
        return result

    def _noted(self, tensor):
        if not _address(tensor) or _address(tensor) in self._own:
            return tensor
        return _Outside(tensor)

    def _save_what_it_changes(self, func, args, kwargs):
        for position, argument in enumerate(func._schema.arguments):
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            if argument.alias_info is None or not argument.alias_info.is_write or not isinstance(value, Tensor):
                continue
            if _address(value) not in self._own and _address(value) not in self._changed:
                self._changed[_address(value)] = _Saved(value)

    def put_back(self):
        for saved in self._changed.values():
            saved.put_back()

    def replay(self):
        with torch.autocast("cpu", enabled=False):
            for func, args, kwargs, targets in self._calls:
                # The functions of pytrees take longer than the operators.
                result = func(*_found(args), **{name: _found(value) for name, value in kwargs.items()})
                results = [result] if isinstance(result, Tensor) else _leaves(result, Tensor)
                for made, target in zip(results, targets, strict=True):
                    target = target.tensor() if isinstance(target, _Outside) else target
                    assert made.shape == target.shape, f"{func} gives another shape when it is replayed"
                    if made.data_ptr() != target.data_ptr():
                        target.copy_(made)


class _Saved:
    """What a storage held before the step."""

    def __init__(self, tensor):
        self._outside, self._bytes = _Outside(tensor), tensor.untyped_storage().clone()

    def put_back(self):
        self._outside.tensor().untyped_storage().copy_(self._bytes)


def _address(tensor):
    """Where the memory of a tensor begins; 0 without any, as of weights in an order of MKL."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0


def _leaves(tree, kinds):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, kinds)]


def _found(value):
    """An argument, or a list or tuple of some, with the tensors from outside."""
    if isinstance(value, _Outside):
        return value.tensor()
    return [_found(part) for part in value] if isinstance(value, list | tuple) else value
