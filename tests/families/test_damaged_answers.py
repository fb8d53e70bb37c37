"""Answers that something happened to: no box ever carries a label that was not written in its own item."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.families.examples import FAMILIES, NAMES
from tests.families.linear_time import takes_linear_time
from vr1.families import GLM4V, CustomFamily, Gemma, Griffon, InternVL, ItemGrammar, PaliGemma, Qwen25VL, Wording
from vr1.types import as_boxes

each_family = pytest.mark.parametrize("family", FAMILIES, ids=NAMES)
GRAMMAR = ItemGrammar(item='{{"box_2d": {box}, "label": "{label}"}}', box="[{y1}, {x1}, {y2}, {x2}]")
DESCRIBED = CustomFamily(frame=1000, wording=Wording(one="{categories}"), grammar=GRAMMAR)
# Each row of boxes and labels is recognisable, whatever part of it is lost.
WORDS = ["apple pie", "big brown bear", "cat's tail", "door: open", "empty, glass", "fork"]


def boxes_of(family, count):
    """Boxes whose numbers name their row: 11, 12, 13, 14 and 21, 22, 23, 24 and so on."""
    scale = 1000 if family.frame == 1.0 else 1
    return as_boxes([[10 * row + column for column in (1, 2, 3, 4)] for row in range(1, count + 1)]) / scale


def row_of(box, family):
    """The row that a box was written for, by its numbers; None for a mixture."""
    shift = family.grammar.shift if family.grammar else 0.0
    numbers = [round((value - shift) * (1000 if family.frame == 1.0 else 1)) for value in box]
    rows = {(number // 10, number % 10 - column) for column, number in enumerate(numbers, 1)}
    return next(iter(rows))[0] - 1 if len(rows) == 1 and next(iter(rows))[1] == 0 else None


def without(pattern):
    """Loses one match of a pattern."""

    def damage(text, data):
        places = [match.span() for match in re.finditer(pattern, text)]
        if not places:
            return text
        start, end = data.draw(st.sampled_from(places))
        return text[:start] + text[end:]

    return damage


def inserted(piece):
    """Puts a text in any place."""

    def damage(text, data):
        place = data.draw(st.integers(0, len(text)))
        return text[:place] + piece + text[place:]

    return damage


def in_a_label(piece):
    """Puts a text into a label."""

    def damage(text, data):
        word = data.draw(st.sampled_from(["pie", "brown", "tail", "open", "glass"]))
        return text.replace(word, word[:2] + piece + word[2:], 1)

    return damage


DAMAGE = {
    "newline": inserted("\n"),
    "newline in a label": in_a_label("\n"),
    "newline and colon in a label": in_a_label(":\n"),
    "inner quote": in_a_label('"'),
    "inner quote before a comma": in_a_label('", '),
    "inner quote before a brace": in_a_label('"} '),
    "inner quote before a bracket": in_a_label('"] '),
    "inner brace": in_a_label("}"),
    "lost quote": without("[\"']"),
    "lost bracket": without(r"[\[\](){}<>]"),
    "lost comma": without("[,;&]"),
    "lost colon": without(":"),
    "cut": lambda text, data: text[: data.draw(st.integers(0, len(text)))],
    "beginning cut": lambda text, data: text[data.draw(st.integers(0, len(text))) :],
    "doubled key": lambda text, data: re.sub(r'("\w+": )', r"\1\1", text, count=data.draw(st.integers(1, 4))),
    "doubled field": lambda text, data: re.sub(
        r'("\w+": (?:\[[^\]]*\]|"[^"\n]*"), )', r"\1\1", text, count=data.draw(st.integers(1, 4))
    ),
    "single quotes": lambda text, data: text.replace('"', "'"),
    "prose": lambda text, data: f'I [think] it is "so" {{here}}:\n{text}\nThat\'s {{all}}, "isn\'t" it?',
    "thought": lambda text, data: f"<think>{text[: data.draw(st.integers(0, len(text)))]}</think>{text}",
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("family", [*FAMILIES, DESCRIBED], ids=[*NAMES, "described"])
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_no_label_is_that_of_another_item(kind, family, data):
    labels = data.draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=5, unique=True))
    text = DAMAGE[kind](family.write(boxes_of(family, len(labels)), labels), data)
    answer = family.read(text)
    for box, label, (start, end) in zip(answer.boxes, answer.labels, answer.item_spans, strict=True):
        assert json.dumps(label)[1:-1] in text[start:end] or label in text[start:end] or "\\" in text[start:end]
        row = row_of(box, family)
        if row is None:
            # A number was cut in two, or lost: which item this is cannot be decided. Its label is in its own span.
            continue
        # A part of its own label may look like another's word: the "s" of a "glas" and "s" torn apart, and of "cat's".
        foreign = {word for other in labels for word in re.findall(r"\w+", other) if word not in labels[row]}
        assert not foreign & {*re.findall(r"\w+", label)}, (text, label)


@pytest.mark.parametrize("kind", ["lost quote", "newline in a label", "inner quote", "inner quote before a comma"])
@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if not family.grammar], ids=lambda family: family.frame
)
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_an_item_out_of_step_keeps_its_box(kind, family, data):
    labels = data.draw(st.lists(st.sampled_from(WORDS), min_size=2, max_size=5, unique=True))
    boxes = boxes_of(family, len(labels))
    text = DAMAGE[kind](family.write(boxes, labels), data)
    answer = family.read(text)
    assert answer.boxes.tolist() == boxes.tolist(), text
    assert sum(label != written for label, written in zip(answer.labels, labels, strict=True)) <= 1
    if answer.labels != tuple(labels) and "" in answer.labels:
        assert answer.problems


CAT, DOG = ("cat", 1, 2, 3, 4), ("dog", 5, 6, 7, 8)


def read(family, text):
    answer = family.read(text)
    return [(label, *box) for label, box in zip(answer.labels, answer.boxes.tolist(), strict=True)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # A line end in a label: read as it stands, in valid JSON and in an answer that is cut.
        ('[{"bbox_2d": [1,2,3,4], "label": "stop\nsign"}, {"bbox_2d": [5,6,7,8], "label": "dog"}]',
         [("stop\nsign", 1, 2, 3, 4), DOG]),
        ('[{"bbox_2d": [1,2,3,4], "label": "stop\nsign"}, {"bbox_2d": [5,6,7,8], "label": "dog"}',
         [("stop\nsign", 1, 2, 3, 4), DOG]),
        # A lost closing quote, a lost opening quote, an inner quote before a comma.
        ('[{"bbox_2d": [1,2,3,4], "label": "cat}, {"bbox_2d": [5,6,7,8], "label": "dog"}]', [("", *CAT[1:]), DOG]),
        ('[{"bbox_2d": [1,2,3,4], "label": cat"}, {"bbox_2d": [5,6,7,8], "label": "dog"}]', [("", *CAT[1:]), DOG]),
        ('[{"bbox_2d": [1,2,3,4], "label": "a "big", red cat"}, {"bbox_2d": [5,6,7,8], "label": "dog"}]',
         [("", *CAT[1:]), DOG]),
        ('[{"label": "cat, "bbox_2d": [1,2,3,4]}, {"label": "dog", "bbox_2d": [5,6,7,8]}]', [("", *CAT[1:]), DOG]),
        ('[{"bbox_2d": [1,2,3,4], "label": "cat"}, {"bbox_2d": [5,6,7,8], "label": "dog}]', [CAT, ("", *DOG[1:])]),
        # Lost quotes of names.
        ('[{"bbox_2d: [1,2,3,4], "label": "cat"}, {bbox_2d": [5,6,7,8], label": "dog"}]', [CAT, DOG]),
        # Lost brackets.
        ('[{"bbox_2d": [1,2,3,4], "label": "cat", {"bbox_2d": [5,6,7,8], "label": "dog"}]', [CAT, DOG]),
        # The same in an answer that is cut: what stands before the next item is whole.
        ('[{"bbox_2d": [1,2,3,4], "label": "cat", {"bbox_2d": [5,6,7,8], "label": "dog"}, {"bbox_2d": [9', [CAT, DOG]),
        ('[{"bbox_2d": [1,2,3,4], "label": "cat"}, "bbox_2d": [5,6,7,8], "label": "dog"}]', [CAT, DOG]),
        ('[{"bbox_2d": [1,2,3,4, "label": "cat"}, {"bbox_2d": 5,6,7,8], "label": "dog"}]', [CAT, DOG]),
        ('[{"bbox_2d": [1,2,3,4, {"bbox_2d": [5,6,7,8], "label": "dog"}]', [("", *CAT[1:]), DOG]),
        # Two items run together: which label belongs to which cannot be decided.
        ('[{"bbox_2d": [1,2,3,4], "label": "cat", "bbox_2d": [5,6,7,8]}]', [("", *DOG[1:])]),
        # What a label may hold.
        ('see: [{"bbox_2d": [1,2,3,4], "label": "a {x: 1} \\"y\\": [2]"}, {"bbox_2d": [5,6,7,8], "label": "dog"}]',
         [('a {x: 1} "y": [2]', 1, 2, 3, 4), DOG]),
    ],
)  # fmt: skip
def test_labels_stay_with_their_boxes(text, expected):
    assert read(Qwen25VL(), text) == expected


@pytest.mark.parametrize(
    ("family", "text", "expected"),
    [
        # The bracket of a box is lost: its numbers are no part of the next label.
        (Griffon(), "cat-1,2,3,4]&dog-[5,6,7,8]", [("", *DOG[1:])]),
        (Griffon(), "cow-[9,9,9,9]&cat-1,2,3,4]&dog-[5,6,7,8]", [("cow", 9, 9, 9, 9), ("", *DOG[1:])]),
        # The label is lost: the box before keeps it for itself.
        (InternVL(), "<ref>cat</ref><box>[[1, 2, 3, 4]]</box>\n<ref></ref><box>[[5, 6, 7, 8]]</box>",
         [CAT, ("", *DOG[1:])]),
        (InternVL(), "<ref>cat</ref><box>[[1, 2, 3], [5, 6, 7, 8]]</box>", [("cat", 5, 6, 7, 8)]),
        # A damaged item after the last label that can be read.
        (PaliGemma(), "<loc0002><loc0001><loc0004><loc0003> cat ; loc0006><loc0005><loc0008><loc0007> dog", [CAT]),
        # Text around the answer is not a label.
        (Griffon(), "I think [so]:\ncat-[1,2,3,4]", [CAT]),
        (PaliGemma(), "<loc0002><loc0001><loc0004><loc0003> cat\nThat is all.", [CAT]),
    ],
)  # fmt: skip
def test_labels_of_items_stay_with_their_boxes(family, text, expected):
    assert read(family, text) == expected


def test_a_label_that_is_left_out_is_counted():
    [problem] = Griffon().read("cat-1,2,3,4]&dog-[5,6,7,8]").problems
    assert problem.startswith("an item out of step, whose label is left out")


LIST = '[{"bbox_2d": [1, 2, 3, 4], "label": "cat"}]'
DRAFT = '[{"bbox_2d": [9, 9, 9, 9], "label": "draft"}]'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{DRAFT}\nWait, that is wrong.\n<answer>{LIST}</answer>", [CAT]),
        (f"```json\n{DRAFT}\n```\nNo: <answer>```json\n{LIST}\n```</answer>", [CAT]),
        (f"{DRAFT} hm</think>{LIST}", [CAT]),
        (f"<think>{DRAFT}</think>{LIST}", [CAT]),
        (f"<think><answer>{DRAFT}</answer></think>{LIST}", [CAT]),
        (f"<think>{DRAFT}</think><answer>{LIST}", [CAT]),
        (f"<answer>{DRAFT}</answer> or rather <answer>{LIST}</answer>", [CAT]),
        (f"<think>{DRAFT}, but then <answer>{LIST}</answer>", [CAT]),
        (f"<think><answer>{LIST}</answer></think>", [CAT]),
        (f"{LIST} <answer>\n</answer>", [CAT]),
        (f"{LIST}<think>{DRAFT}", [CAT]),
        (f"<think>{DRAFT}", []),
        (f"<think>a</think><think>{DRAFT}", []),
        (f"{DRAFT}<answer>There is none.</answer>", []),
        (f"<think>{DRAFT}</think>There is none.", []),
        (f"<think>a</think>{DRAFT} no, <think>b</think>{LIST}", [CAT]),
        (f"<think>a</think>{DRAFT}</think>{LIST}", [CAT]),
        (f"{DRAFT}</think>", []),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "<think>cat</think>"}]', [("<think>cat</think>", 1, 2, 3, 4)]),
    ],
)
def test_a_draft_is_not_the_answer(text, expected):
    assert read(Qwen25VL(), text) == expected


def test_a_draft_of_items_is_not_the_answer():
    assert read(Griffon(), "cow-[9,9,9,9] no</think>cat-[1,2,3,4]") == [CAT]
    assert read(Griffon(), "cow-[9,9,9,9] no <answer>cat-[1,2,3,4]</answer>") == [CAT]
    assert read(Griffon(), "<think>cow-[9,9,9,9]") == []


@pytest.mark.parametrize(
    "name", ["label", "name", "category", "class", "class_name", "object", "category_name", "Class Name"]
)
def test_names_of_labels(name):
    assert read(Qwen25VL(), f'[{{"{name}": "cat", "bbox_2d": [1, 2, 3, 4]}}]') == [CAT]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"cat": [1, 2, 3, 4], "dog": [5, 6, 7, 8]}', [CAT, DOG]),
        ('{"cat": [[1, 2, 3, 4], [9, 9, 9, 9]], "dog": [[5, 6, 7, 8]]}', [CAT, ("cat", 9, 9, 9, 9), DOG]),
        ('[{"cat": [1, 2, 3, 4]}, {"dog": {"x1": 5, "y1": 6, "x2": 7, "y2": 8}}]', [CAT, DOG]),
        ('{"labels": ["cat", "dog"], "bboxes": [[1, 2, 3, 4], [5, 6, 7, 8]]}', [CAT, DOG]),
        ('{"bboxes": [[1, 2, 3, 4], [5, 6, 7, 8]], "labels": ["cat", "dog"]}', [CAT, DOG]),
        ('[{"bbox_2d": [[1, 2], [3, 4]], "label": "cat"}]', [CAT]),
        ("[[[1, 2], [3, 4]], [[5, 6], [7, 8]]]", [("", *CAT[1:]), ("", *DOG[1:])]),
        ('[{"x1": 1, "y1": 2, "x2": 3, "y2": 4, "label": "cat"}]', [CAT]),
        ('[{"label": "cat", "ymin": 2, "xmin": 1, "ymax": 4, "xmax": 3}]', [CAT]),
        ('[{"label": "cat", "bbox": {"left": 1, "top": 2, "right": 3, "bottom": 4}}]', [CAT]),
        ('[["cat", [1, 2, 3, 4]], ["dog", [5, 6, 7, 8]]]', [CAT, DOG]),
        ('{"objects": [{"object": "cat", "coordinates": [1, 2, 3, 4]}]}', [CAT]),
    ],
)  # fmt: skip
def test_shapes_of_answers(text, expected):
    answer = Qwen25VL().read(text)
    assert read(Qwen25VL(), text) == expected
    assert answer.problems == ()
    assert not answer.follows_template
    # The same, where the scanner has to read it.
    assert read(Qwen25VL(), f"{text}, or [so") == expected


@pytest.mark.parametrize(
    ("text", "boxes", "problem"),
    [
        ('[{"point_2d": [1, 2], "label": "cat"}]', 0, "a point and no box"),
        ('[{"point_2d": [1, 2], "label": "cat"}, {"bbox_2d": [5, 6, 7, 8], "label": "dog"}]', 1, "a point and no box"),
        ('[{"label": "cat"}]', 0, "no box"),
        ('{"labels": ["cat", "dog", "cow"], "bboxes": [[1, 2, 3, 4], [5, 6, 7, 8]]}', 2, "not one label for each box"),
        ('[{"bbox_2d": [[1, 2], [3, 4], [5, 6], [7, 8]], "label": "cat"}]', 0, "no four finite numbers"),
        ('[{"bbox_2d": [1, 2, 3, 4], "bbox_2d": [5, 6, 7, 8], "label": "dog"}]', 1, "twice in one item"),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "cat", "label": "dog"}]', 1, "twice in one item"),
        ('[{"animal": "cat", "where": [1, 2, 3, 4]}]', 1, "no name of a label is known"),
        ('[{"x1": 1, "y1": "two", "x2": 3, "y2": 4, "label": "cat"}]', 0, "no four finite numbers"),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "cat}, {"bbox_2d": [5, 6, 7, 8]}]', 2, "an item out of step"),
        ('[{"box_2d": [1, 2, 3, 4], "label": "cat"}]', 1, "box_2d where the family writes bbox_2d"),
    ],
)
def test_what_cannot_be_read_is_counted(text, boxes, problem):
    answer = Qwen25VL().read(text)
    assert len(answer.boxes) == boxes
    assert any(found.startswith(problem) for found in answer.problems)
    assert not answer.follows_template or problem == "twice in one item"


def test_names_that_contradict_the_family_are_counted():
    answer = Gemma().read('[{"bbox_2d": [1, 2, 3, 4]}, {"box_2d": [1, 2, 3, 4]}, {"bbox_2d": [1, 2, 3, 4]}]')
    assert len(answer.boxes) == 3
    assert [found.split(":")[0] for found in answer.problems] == ["bbox_2d where the family writes box_2d"] * 2


UNITS = ['"x} ', '"x: ', '{"a": ', '"\n', "'\n\"", '"a": "b\n', '{ "', "{ x", '["a", [1]', '"\\\n', '"}, {"', "]"]
STARTS = ["", "[[", '[{"bbox_2d": [1, 2, 3, 4], "label": "', '{"a": 1, 2', "<think>", "cat-[1,2,3,4]&"]
MARKED = ["<|begin_of_box|>", "<|begin_of_box|>[(", "<|begin_of_box|>(1,2),<3", "<|end_of_box|>", "(<"]
# One family of each way to read without a grammar, by its class; `test_item_grammar.py` has the others.
SLOWEST = [
    *((Qwen25VL(), start, unit) for start in STARTS for unit in UNITS),
    *((GLM4V(), start, unit) for start in ("", "<|begin_of_box|>") for unit in (*UNITS, *MARKED)),
    *((Gemma(), '[{"box_2d": [1, 2, 3, 4], "label": "', unit) for unit in UNITS),
]


def test_every_way_to_read_is_timed():
    without = [family for family in FAMILIES if not family.grammar]
    assert {type(family).read for family in without} <= {type(family).read for family, _, _ in SLOWEST}
    assert {family.y_first for family in without} <= {family.y_first for family, _, _ in SLOWEST}


@pytest.mark.parametrize(("family", "start", "unit"), SLOWEST)
def test_takes_linear_time(family, start, unit):
    assert takes_linear_time(family.read, lambda length: start + unit * (length // len(unit)), 5_000, 0.02)


@pytest.mark.parametrize(
    ("item", "text", "labels"),
    [
        ("{label} @ {box}", "cat @ 1 2 3 4\nblah blah\ndog @ 5 6 7 8", ("cat", "dog")),
        ("{box} @ {label}", "1 2 3 4 @ cat\nblah blah\n5 6 7 8 @ dog", ("cat", "dog")),
    ],
)
def test_a_line_between_items_is_part_of_no_label(item, text, labels):
    family = CustomFamily(
        frame=512,
        wording=Wording(one="Find {categories}."),
        grammar=ItemGrammar(item=item, box="{x1} {y1} {x2} {y2}", separator="\n"),
    )
    answer = family.read(text)
    assert answer.labels == labels
    assert not answer.follows_template
    assert family.read(text.replace("blah blah\n", "")).follows_template
