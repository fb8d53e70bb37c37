"""Contracts that are checked at run time hold on every supported version of Python."""

import importlib
import inspect
from pathlib import Path

import pytest
from typing_extensions import get_protocol_members, is_protocol

from vr1.modules.grpo import GRPOModule
from vr1.modules.sft import SFTModule
from vr1.policy import PolicySource

ROOT = Path(__file__).parents[1]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("vr1", "callbacks")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "@runtime_checkable" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("kind", [GRPOModule, SFTModule])
def test_what_a_module_has_is_seen_by_python_3_12(kind, tiny_model):
    module = kind(policy=PolicySource(path=str(tiny_model)))
    module.configure_model()
    checked = 0
    for name in MODULES:
        for protocol in vars(importlib.import_module(name)).values():
            if not (inspect.isclass(protocol) and is_protocol(protocol) and protocol.__module__ == name):
                continue
            members = get_protocol_members(protocol)
            if all(hasattr(module, member) for member in members):
                checked += 1
                for member in members:
                    # From Python 3.12 on, isinstance(module, protocol) looks for its members in this way: parts of a
                    # torch module, which torch looks up on access, are not seen.
                    assert inspect.getattr_static(module, member, None) is not None, f"{protocol.__name__}: {member}"
    assert checked >= 2
