"""Templates of items: what they refuse, and what is read from text that is not quite as they write it."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.families.linear_time import takes_linear_time
from vr1.families import Florence2, Griffon, InternVL, ItemGrammar, PaliGemma, Qwen2VL, Wording
from vr1.families.item_reader import read_items
from vr1.families.json_answer import MAX_ITEMS
from vr1.types import as_boxes


def read(family, text):
    answer = family.read(text)
    return [(label, *box) for label, box in zip(answer.labels, answer.boxes.tolist(), strict=True)]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"box": "[{x1}, {y1}, {x2}]"}, r"grammar.box"),
        ({"box": "[{x1}, {y1}, {x2}, {y2}, {y2}]"}, r"grammar.box"),
        ({"box": "[{x1}, {y1}, {x2}, {y2}, {z}]"}, r"grammar.box"),
        ({"box": "[{x1:wide}, {y1}, {x2}, {y2}]"}, r"grammar.box=.*:wide"),
        ({"box": "[{x1, {y1}, {x2}, {y2}]"}, r"grammar.box"),
        ({"item": "{label}"}, r"grammar.item"),
        ({"item": "{label} {label}: {box}"}, r"grammar.item"),
        ({"item": "{box} {boxes} {label}"}, r"grammar.item"),
        ({"box": "[{x1}, {}, {y1}, {x2}, {y2}]"}, r"grammar.box=.*a field is a name"),
        ({"item": "{label!r}: {box}"}, r"grammar.item=.*a field is a name"),
        ({"box": "{x1}{y1}{x2}{y2}"}, r"'cat: 123040' is written but read as"),
        ({"box": "{x1} {y1} {x2} {y2}", "item": "{label}{box}"}, r"'cat1 2 30 40' is written but read as"),
        ({"box": "[{x1:.0%}, {y1}, {x2}, {y2}]"}, r"'cat: \[100%, 2, 30, 40\]' is written but read as"),
        ({"item": "{box}{label}", "separator": "", "box": "{x1},{y1},{x2},{y2}"}, r"is written but read as"),
    ],
)
def test_a_template_without_its_fields_is_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        ItemGrammar(**settings)


GEMINI = ItemGrammar(item='{{"box_2d": {box}, "label": "{label}"}}', box="[{y1}, {x1}, {y2}, {x2}]")


def test_doubled_braces_are_braces():
    text = GEMINI.write(as_boxes([[10, 20, 30, 40], [1, 2, 3, 4]]), ["cat", "dog"])
    assert text == '{"box_2d": [20, 10, 40, 30], "label": "cat"}\n{"box_2d": [2, 1, 4, 3], "label": "dog"}'
    answer = read_items(text, GEMINI)
    assert (answer.follows_template, answer.labels) == (True, ("cat", "dog"))
    assert answer.boxes.tolist() == [[10, 20, 30, 40], [1, 2, 3, 4]]
    braces = ItemGrammar(box="{{{x1}|{y1}|{x2}|{y2}}}", item="{{{label}}}{box}")
    assert braces.write(as_boxes([[1, 2, 3, 4]]), ["cat"]) == "{cat}{1|2|3|4}"


@pytest.mark.parametrize("family", [GEMINI, PaliGemma().grammar])
def test_json_in_place_of_items_has_the_order_of_the_grammar(family):
    answer = read_items('```json\n[{"box_2d": [20, 10, 40, 30], "label": "cat"}]\n```', family)
    assert answer.boxes.tolist() == [[10, 20, 30, 40]]
    assert answer.labels == ("cat",)
    assert not answer.follows_template


def test_a_question_without_its_categories_is_refused():
    with pytest.raises(ValueError, match=r"wording.several='Find all\.'"):
        Wording(one="Find {categories}.", several="Find all.")


CAT = ("cat", 1, 2, 30, 40)
DOG = ("dog", 5, 6, 70, 80)


@pytest.mark.parametrize(
    ("family", "text", "expected"),
    [
        (InternVL(), "<ref>cat</ref><box>[[1, 2, 30, 40]]</box>", [CAT]),
        (InternVL(), "<ref>cat</ref> <box> [[1,2,30,40] ]</box><ref>dog</ref><box>[[5, 6, 70, 80]]</box>", [CAT, DOG]),
        (InternVL(), "Sure!\n```\n<ref>cat</ref><box>[[1, 2, 30, 40]]</box>\n```", [CAT]),
        (InternVL(), "I see a <ref>cat</ref><box>[[1, 2, 30, 40]]</box> and a <ref>dog</ref><box>[[5, 6", [CAT]),
        (InternVL(), "cat[[1, 2, 30, 40]]\ndog[[5, 6, 70, 80]]", [CAT, DOG]),
        (InternVL(), "[[1, 2, 30, 40], [5, 6, 70, 80]]", [("", *CAT[1:]), ("", *DOG[1:])]),
        (InternVL(), '[{"bbox_2d": [1, 2, 30, 40], "label": "cat"}]', [CAT]),
        (InternVL(), "<think>[[9, 9, 9, 9]]</think><answer><ref>cat</ref><box>[[1, 2, 30, 40]]</box></answer>", [CAT]),
        (Qwen2VL(), "cat(1,2),(30,40)", [CAT]),
        (Qwen2VL(), "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(1, 2), (30, 40)<|box_end|>", [CAT]),
        (Qwen2VL(), "cat(1,2),(30,40) dog(5,6),(70,80) cow(1,2),(3,", [CAT, DOG]),
        (Griffon(), "cat-[1,2,30,40]&dog-[5,6,70,80]&cow-[1,2,3", [CAT, DOG]),
        (Griffon(), "cat - [1, 2, 30, 40] & dog-[5,6,70,80", [CAT]),
        (Griffon(), "cat-[1,2,30,40)&dog-[5,6,70,80]", [CAT, DOG]),
        (Griffon(), "black & white cat-[1,2,30,40]", [("black & white cat", 1, 2, 30, 40)]),
        (Griffon(), "[1,2,30,40]", [("", 1, 2, 30, 40)]),
        (Griffon(), "I see none of these.", []),
        (Griffon(), "Here they are:\n* cat - [1,2,30,40]\n* dog - [5,6,70,80]", [CAT, DOG]),
        (PaliGemma(), "<loc0002><loc0001><loc0040><loc0030> cat;<loc0006><loc0005><loc0080><loc0070>dog", [CAT, DOG]),
        (PaliGemma(), "<loc0002><loc0001><loc0040><loc0030> cat ; <loc0006><loc0005><loc00", [CAT]),
        (PaliGemma(), "<loc0002><loc0001><loc0040><loc0030>", [("", 1, 2, 30, 40)]),
        (Florence2(), "cat<loc_1><loc_2><loc_3><loc_4><loc_5><loc_6><loc_7><loc_8>", [
            ("cat", 1.5, 2.5, 3.5, 4.5), ("cat", 5.5, 6.5, 7.5, 8.5)]),
        (Florence2(), "cat<loc_1><loc_2><loc_3><loc_4>dog<loc_5><loc_6><loc_7", [("cat", 1.5, 2.5, 3.5, 4.5)]),
    ],
)  # fmt: skip
def test_reads_what_a_person_would_read(family, text, expected):
    assert read(family, text) == expected


@pytest.mark.parametrize(
    ("family", "text", "follows"),
    [
        (
            InternVL(),
            "<ref>a</ref><box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>\n<ref>b</ref><box>[[1, 2, 3, 4]]</box>",
            True,
        ),
        (InternVL(), "<ref>a</ref><box>[[1,2,3,4]]</box>", True),
        (InternVL(), "None", True),
        (InternVL(), "a[[1, 2, 3, 4]]", False),
        (InternVL(), "<ref>a</ref><box>[[1, 2, 3]]</box>", False),
        (InternVL(), "<ref>a</ref><box>[[1, 2, 3, 4]]</box> there", False),
        (InternVL(), "", False),
        (Griffon(), "a-[0.1,0.2,0.3,0.4]&b-[0.1,0.2,0.3,0.4]", True),
        (Griffon(), "a-[0.1,0.2,0.3,0.4]&b-[0.1,0.2", False),
        (Griffon(), "a-[0.1,0.2,0.3,0.4],b-[0.1,0.2,0.3,0.4]", False),
        (PaliGemma(), "", True),
        (PaliGemma(), "<loc0002><loc0001><loc0040><loc0030> cat", True),
        (PaliGemma(), "<loc0002><loc0001><loc0040> cat", False),
        (Griffon(), '[{"bbox_2d": [1, 2, 3, 4], "label": "a"}]', False),
    ],
)
def test_which_answers_follow_the_template(family, text, follows):
    assert family.read(text).follows_template == follows


def test_an_unusable_box_is_a_problem_and_not_a_box():
    answer = Griffon().read("cat-[0.1,0.2,0.3]&dog-[0.1,0.2,0.3,0.4]&cow-[1e999,0,0,0]")
    assert answer.labels == ("dog",)
    assert len(answer.problems) == 2


def test_stops_at_the_limit():
    item = "<ref>a</ref><box>[[1, 2, 3, 4]]</box>\n"
    at_limit, over = (InternVL().read(item * count) for count in (MAX_ITEMS, MAX_ITEMS + 1))
    assert len(at_limit.boxes) == len(over.boxes) == MAX_ITEMS
    assert (at_limit.follows_template, over.follows_template) == (True, False)


GRAMMARS = [
    ItemGrammar(),
    ItemGrammar(box="{x1} {y1} {x2} {y2}", item="{label} {box}"),
    ItemGrammar(box="<p>({x1},{y1}),({x2},{y2})</p>", item="<b>{label}</b>{box}"),
    ItemGrammar(box="<loc{y1:04.0f}><loc{x1:04.0f}><loc{y2:04.0f}><loc{x2:04.0f}>", item="{box} {label}"),
    ItemGrammar(item="<ref>{label}</ref><box>[{boxes}]</box>"),
]


@given(st.text(st.sampled_from("[](){}<>/,;&-:. \n0123456789eabloc_refx猫\ud800"), max_size=200))
@settings(deadline=None, max_examples=200)
def test_never_raises(completion):
    for grammar in GRAMMARS:
        answer = read_items(completion, grammar)
        assert answer.boxes.shape == (len(answer.labels), 4)
        assert np.isfinite(answer.boxes).all()


@given(st.lists(st.tuples(*[st.integers(0, 9999)] * 4), max_size=6), st.data())
@settings(deadline=None, max_examples=50)
def test_any_grammar_reads_what_it_writes(boxes, data):
    names = st.text(st.characters(categories=["Ll", "Lu"]), min_size=1, max_size=8)
    labels = tuple(" ".join(data.draw(st.lists(names, min_size=1, max_size=3))) for _ in boxes)
    for grammar in GRAMMARS:
        answer = read_items(grammar.write(as_boxes(boxes), labels), grammar)
        assert answer.follows_template
        assert answer.boxes.tolist() == as_boxes(boxes).tolist()
        assert answer.labels == labels


@pytest.mark.parametrize(
    "unit", ["[", "<", "[1", "1 ", "9", "<loc0001>", "a-[1,2,3,4]&", "<ref>", " ", "(1,2),", "&", "[1,", "\n"]
)
@pytest.mark.parametrize("grammar", GRAMMARS, ids=["colon", "blank", "marked", "after", "shared"])
def test_takes_linear_time(unit, grammar):
    read = partial(read_items, grammar=grammar)
    assert takes_linear_time(read, lambda length: unit * (length // len(unit)), 5_000, 0.05)
