"""Versions, the rates of the hardware, and products with 4-bit weights against dequantised ones."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from gpu_steps.models import available
from gpu_steps.run import Bench

_PACKAGES = ("torch", "transformers", "lightning", "peft", "torchmetrics", "bitsandbytes", "trl", "vllm", "vr1")


def run(bench: Bench) -> None:
    """Measure."""
    bench.record(versions={name: _version(name) for name in _PACKAGES}, python=platform.python_version())
    bench.record(device=_device(bench), shape=bench.shape)
    large = bench.device == "cuda"
    with bench.part("copy_gb_per_second"):
        source = torch.empty(2**30 if large else 2**22, dtype=torch.bfloat16, device=bench.device)
        target = torch.empty_like(source)
        seconds = bench.seconds(target.copy_, source)
        # Read once and written once.
        bench.record(copy_gb_per_second=2 * source.numel() * 2 / seconds / 1e9)
        del source, target
    with bench.part("read_gb_per_second"):
        # What decoding does: a matrix that is read for a few rows.
        size = (16384, 16384) if large else (512, 512)
        weight, rows = torch.randn(size, device=bench.device, dtype=bench.dtype), torch.randn(8, size[0])
        rows = rows.to(weight)
        seconds = bench.seconds(torch.matmul, rows, weight)
        bench.record(read_gb_per_second=weight.numel() * weight.element_size() / seconds / 1e9)
        del weight
    with bench.part("tflop_per_second"):
        side = 8192 if large else 256
        left, right = (torch.randn(side, side, device=bench.device, dtype=bench.dtype) for _ in range(2))
        bench.record(tflop_per_second=2 * side**3 / bench.seconds(torch.matmul, left, right) / 1e12)
        del left, right
    _four_bits(bench, (18944, 3584) if large else (256, 128))


def _four_bits(bench: Bench, shape: tuple[int, int]) -> None:
    """Microseconds of one product: bf16, 4 bits as bitsandbytes dispatches it, dequantised at each call."""
    for rows in (1, 8, 32, 128):
        name = f"product_us_{rows}_rows"
        with bench.part(name):
            weight = torch.randn(shape, device=bench.device, dtype=bench.dtype)
            inputs = torch.randn(rows, shape[1], device=bench.device, dtype=bench.dtype)
            found = {"bf16": 1e6 * bench.seconds(linear, inputs, weight, repeats=20)}
            if available("bitsandbytes"):
                packed, state = _packed(weight)
                with torch.no_grad():
                    fused = bench.seconds(_four_bit_product, inputs, packed, state, repeats=20)
                    plain = bench.seconds(_dequantised_product, inputs, packed, state, repeats=20)
                found |= {"4 bits": 1e6 * fused, "4 bits, dequantised": 1e6 * plain}
            bench.record(**{name: found})


def _packed(weight: Tensor) -> Any:
    from bitsandbytes.functional import quantize_4bit

    return quantize_4bit(weight, quant_type="nf4", compress_statistics=True)


def _four_bit_product(inputs: Tensor, packed: Tensor, state: Any) -> Tensor:
    from bitsandbytes import matmul_4bit

    return matmul_4bit(inputs, packed.t(), quant_state=state)


def _dequantised_product(inputs: Tensor, packed: Tensor, state: Any) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    return linear(inputs, dequantize_4bit(packed, state).to(inputs.dtype))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _device(bench: Bench) -> dict[str, object]:
    if bench.device == "cpu":
        return {"name": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "memory_gib": round(found.total_memory / 2**30, 1),
        "processors": found.multi_processor_count,
        "cuda": torch.version.cuda,
    }
