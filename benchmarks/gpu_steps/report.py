"""``results.json`` as Markdown tables."""

import json
from pathlib import Path
from typing import Any

from vr1.runs.tables import markdown_table


def render(file: Path) -> str:
    """The tables, one a step; tracebacks and lists of kernels are left out.

    Args:
        file: a ``results.json``.
    """
    results: dict[str, dict[str, Any]] = json.loads(file.read_text())
    parts = []
    for step, found in results.items():
        state, seconds = found.pop("state", "unfinished"), found.pop("seconds", None)
        left_out = ("traceback", "kernels: ")
        rows = [[name, _text(value)] for name, value in _flat(found) if not any(part in name for part in left_out)]
        head = f"## {step}\n\n{state}" + (f" in {seconds} s" if seconds is not None else "")
        parts.append(f"{head}\n\n{markdown_table(['', 'measured'], rows)}" if rows else head)
    return "\n\n".join(parts)


def _flat(values: Any, name: str = "") -> list[tuple[str, Any]]:
    if isinstance(values, dict):
        return [pair for key, value in values.items() for pair in _flat(value, f"{name}: {key}" if name else str(key))]
    if isinstance(values, list) and values and isinstance(values[0], dict):
        # Of the steps of a training the last: the first warms up.
        return _flat(values[-1], name.removesuffix(": steps"))
    return [(name, values)]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value)
    return str(value)
