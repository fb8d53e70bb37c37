"""Kernels at the sizes of the model: linear layers of few rows, attention, sampling, the head with its loss."""

from typing import Any

import torch
from grpo_step.shapes import TEXT_SHAPES
from torch.nn.functional import linear, scaled_dot_product_attention

from gpu_steps.run import Bench
from vr1.policy.logprobs import token_log_probs


def run(bench: Bench) -> None:
    """Measure."""
    text = TEXT_SHAPES["24m" if bench.shape == "tiny" else bench.shape]
    hidden, inner, vocabulary = text["hidden_size"], text["intermediate_size"], text["vocab_size"]
    heads, shared = text["num_attention_heads"], text["num_key_value_heads"]
    width = hidden // heads
    layers = {
        "q|k|v": (hidden, (heads + 2 * shared) * width),
        "o": (heads * width, hidden),
        "gate|up": (hidden, 2 * inner),
        "down": (inner, hidden),
        "head": (hidden, vocabulary),
    }
    # A CPU tries the code.
    repeats = 20 if bench.device == "cuda" else 3
    for name, (inputs, outputs) in layers.items():
        with bench.part(name):
            weight = torch.randn(outputs, inputs, device=bench.device, dtype=bench.dtype)
            found = {}
            for rows in (8, 32, 128):
                states = torch.randn(rows, inputs, device=bench.device, dtype=bench.dtype)
                seconds = bench.seconds(linear, states, weight, repeats=repeats)
                found[f"{rows} rows"] = {
                    "us": 1e6 * seconds,
                    "read_gb_per_second": weight.numel() * weight.element_size() / seconds / 1e9,
                }
            bench.record(**{name: found})
    with bench.part("attention of completions"):
        bench.record(**{"attention of completions": _attention(bench, heads, shared, width)})
    with bench.part("head and log-probs"):
        bench.record(**{"head and log-probs": _head(bench, hidden, vocabulary)})


def _attention(bench: Bench, heads: int, shared: int, width: int) -> dict[str, Any]:
    """Forward and backward of completions over their prompt, by backend of torch's attention."""
    rows, own, prompt = (32, 256, 1095) if bench.device == "cuda" else (4, 16, 64)
    query = torch.randn(rows, heads, own, width, device=bench.device, dtype=bench.dtype, requires_grad=True)
    key, value = (
        torch.randn(rows, shared, prompt + own, width, device=bench.device, dtype=bench.dtype, requires_grad=True)
        for _ in range(2)
    )
    mask = torch.ones(own, prompt + own, dtype=torch.bool, device=bench.device).tril(prompt)

    def work() -> None:
        result = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
        result.sum().backward()

    found: dict[str, Any] = {"default_ms": 1e3 * bench.seconds(work)}
    if bench.device == "cuda":
        for backend in torch.nn.attention.SDPBackend.__members__.values():
            if backend.name in ("ERROR", "OVERRIDEABLE"):
                continue
            try:
                with torch.nn.attention.sdpa_kernel(backend):
                    found[f"{backend.name.lower()}_ms"] = 1e3 * bench.seconds(work)
            except RuntimeError as error:
                found[f"{backend.name.lower()}_ms"] = f"refused: {str(error).splitlines()[0]}"
    return found


def _head(bench: Bench, hidden: int, vocabulary: int) -> dict[str, float]:
    tokens = 8192 if bench.device == "cuda" else 64
    weight = torch.randn(vocabulary, hidden, device=bench.device, dtype=bench.dtype) * hidden**-0.5
    states = torch.randn(tokens, hidden, device=bench.device, dtype=bench.dtype, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,), device=bench.device)

    def work() -> None:
        values, _ = token_log_probs(lambda rows: (rows @ weight.T).float(), states, targets, 1.0)
        values.sum().backward()

    return {"tokens": tokens, "forward_and_backward_ms": 1e3 * bench.seconds(work, repeats=3)}
