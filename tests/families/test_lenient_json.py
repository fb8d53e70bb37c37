import pytest

from vr1.families import lenient_json
from vr1.families.lenient_json import DEPTH, Fields, Scalar, Scalars


def plain(found):
    if isinstance(found, Scalar):
        return found.value
    if isinstance(found, Fields):
        return {name: plain(value) for name, value in found.values.items()}
    return [plain(inner) for inner in (found.items if isinstance(found, Scalars) else found)]


def scan(text):
    """What is found in a text, without its positions."""
    return map(plain, lenient_json.scan(text))


def test_prose_is_passed_over():
    assert list(scan('It\'s a "cat" at 1, 2, 3 (see below).')) == []


def test_an_object_that_is_cut_off_is_not_given():
    assert list(scan('[{"a": 1}, {"b": [[1, 2, 3, 4]], "c')) == [{"a": 1.0}]


def test_the_later_of_two_fields_stays():
    assert list(scan('{"a": 1, "a": 2}')) == [{"a": 2.0}]


def test_words_and_null():
    assert list(scan("{a: null, b: None, c: true, d: -Infinity}")) == [
        {"a": None, "b": None, "c": "true", "d": "-Infinity"}
    ]


def test_a_lost_quote_costs_one_line():
    assert list(scan('[{"a": "x\n}, {"b": "y"}]')) == [{"a": "x"}, {"b": "y"}]


@pytest.mark.parametrize("depth", [DEPTH - 1, DEPTH + 1, 100_000])
def test_nesting_of_any_depth(depth):
    assert list(scan("[" * depth + "1, 2" + "]" * depth)) == [[1.0, 2.0]]
