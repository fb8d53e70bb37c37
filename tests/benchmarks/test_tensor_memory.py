"""The record of torch's allocator: exact, also within operators and backward, and without mapped files."""

import torch
from safetensors.torch import load_file, save_file
from tensor_memory import allocations, elsewhere

KIB = 1024


def floats(kib):
    return torch.zeros(kib * KIB // 4)


def test_the_peak_is_that_of_all_tensors_alive_at_once():
    def function():
        first = floats(64)
        second = first + 1
        del first
        return second, floats(32)

    peak, allocated, result = allocations(function)
    # torch.zeros and the number that is added need a few bytes more.
    assert 128 * KIB <= peak < 129 * KIB
    assert {tensor.data_ptr() for tensor in result} <= allocated


def test_backward_and_the_optimizer_are_recorded():
    weight = floats(64).requires_grad_()
    optimizer = torch.optim.AdamW([weight])

    def function():
        (weight * 2).sum().backward()
        optimizer.step()

    peak, allocated, _ = allocations(function)
    # Gradient, two states, and at least one value of the update.
    assert peak >= 4 * 64 * KIB
    assert weight.grad.data_ptr() in allocated


def test_tensors_from_before_do_not_count():
    before = [floats(64)]
    peak, _, _ = allocations(before.clear)
    assert peak == 0


def test_mapped_weights_are_not_of_the_allocator_and_count_once(tmp_path):
    save_file({"weight": floats(64), "other": floats(16)}, tmp_path / "weights.safetensors")
    peak, allocated, weights = allocations(lambda: load_file(tmp_path / "weights.safetensors"))
    copied = floats(8)
    assert peak < KIB
    assert elsewhere([*weights.values(), *weights.values()], allocated) == 80 * KIB
    assert elsewhere([copied], allocated | {copied.data_ptr()}) == 0
