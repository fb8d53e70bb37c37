"""Every fault can still be planted: its source stands in its file once, and its tests are there."""

import ast

import pytest

from tests.mutants.run import ROOT, SETS, planted

FAULTS = [fault for faults in SETS.values() for fault in faults]
NAMES = [
    f"{name}-{number}-{fault.file}" for name, faults in SETS.items() for number, fault in enumerate(faults, start=1)
]


@pytest.mark.parametrize("fault", FAULTS, ids=NAMES)
def test_it_can_be_planted(fault):
    text = planted(fault, ROOT)
    if fault.file.endswith(".py"):
        ast.parse(text)
    assert fault.tests
    for test in fault.tests:
        file, *names = test.split("::")
        text = (ROOT / file).read_text(encoding="utf-8")
        for name in names:
            assert name.partition("[")[0] in text, f"{file} has no {name}"


def test_none_stands_there_twice():
    assert len({(fault.file, fault.source, fault.replacement) for fault in FAULTS}) == len(FAULTS)
