import pytest

from vr1.families import Griffon, Qwen25VL, lenient_json
from vr1.families.answer_region import answer_region
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


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("<answer>[1]</answer>", "[1]"),
        ("<think>I write <answer>[9]</answer>.</think><answer>[1]</answer>", "[1]"),
        ("<answer>[9]</answer> or rather <answer> [1] </answer> it is", "[1]"),
        ("<answer>[9]</answer><answer>[1]", "[1]"),
        ("<think>not [9]</think> I think</think> [1] ", "[1]"),
        ("[1]<answer> </answer>", "[1]<answer> </answer>"),
        ("[9]<answer>none</answer>", "none"),
        ("<think>[9]</think> none", "none"),
        ("[1]<think>[9]", "[1]"),
    ],
)
def test_the_last_answer_counts(text, region):
    start, end = answer_region(text)
    assert text[start:end] == region


@pytest.mark.parametrize(
    ("family", "first", "last"),
    [
        (Qwen25VL(), '[{"bbox_2d": [9, 9, 10, 10], "label": "dog"}]', '[{"bbox_2d": [1, 2, 3, 4], "label": "cat"}]'),
        (Griffon(), "dog-[9,9,10,10]", "cat-[1,2,3,4]"),
    ],
    ids=["json", "items"],
)
def test_an_answer_that_is_taken_back_is_none(family, first, last):
    read = family.read(f"<think>Is it <answer>{first}</answer>? No.</think><answer>{last}</answer>")
    assert (read.labels, read.boxes.tolist()) == (("cat",), [[1, 2, 3, 4]])


@pytest.mark.parametrize("depth", [DEPTH - 1, DEPTH + 1, 100_000])
def test_nesting_of_any_depth(depth):
    assert list(scan("[" * depth + "1, 2" + "]" * depth)) == [[1.0, 2.0]]
