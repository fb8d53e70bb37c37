"""The table of the classes before and after training."""

import pytest

from vr1.runs.classes import ClassComparison, ClassMeasurement


def measured(step, **figures):
    return ClassMeasurement(step, {name: {"map": ap, "objects": boxes} for name, (ap, boxes) in figures.items()})


def test_largest_gain_first_and_classes_without_a_box_last():
    first = measured(0, cat=(0.25, 4.0), dog=(0.5, 9.0), fish=(-1.0, 0.0), ant=(0.0, 9.0))
    last = measured(8, cat=(0.5, 4.0), dog=(0.375, 9.0), fish=(-1.0, 0.0), ant=(0.25, 9.0))
    table = ClassComparison(first, last, best=measured(4, cat=(0.625, 4.0), dog=(0.5, 9.0)))
    assert table.columns == ["class", "boxes", "AP before", "AP after (step 8)", "change", "AP best (step 4)"]
    assert table.rows == [
        # Of equal gains, the class with more boxes.
        ["ant", "9", "0.000", "0.250", "+0.250", "-"],
        ["cat", "4", "0.250", "0.500", "+0.250", "0.625"],
        ["dog", "9", "0.500", "0.375", "-0.125", "0.500"],
        ["fish", "0", "-", "-", "-", "-"],
    ]
    assert ClassComparison.from_dict(table.as_dict()) == table


def test_a_single_validation_has_no_change():
    table = ClassComparison(measured(40, cat=(0.25, 4.0), dog=(0.5, 9.0)))
    assert table.columns == ["class", "boxes", "AP at step 40"]
    assert table.rows == [["dog", "9", "0.500"], ["cat", "4", "0.250"]]


def test_no_validation_has_no_table():
    assert ClassComparison.from_dict({}) == ClassComparison()
    assert ClassComparison().markdown() == ""


def test_other_fields_are_refused():
    with pytest.raises(TypeError):
        ClassComparison.from_dict({"first": {"step": 1}})
