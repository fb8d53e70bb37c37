"""Where boxes and items are in a completion, for whole answers, damaged ones and recorded ones of real models."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.families.examples import FAMILIES, NAMES
from tests.shared_data import SHARED, needs_shared
from vr1.detections import read_detections
from vr1.families import Florence2, Griffon, InternVL, ItemGrammar, PaliGemma, Qwen2VL, Qwen25VL
from vr1.families.item_reader import read_items
from vr1.types import as_boxes

each_family = pytest.mark.parametrize("family", FAMILIES, ids=NAMES)
NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")


def pieces(text, spans):
    return [text[start:end] for start, end in spans]


def check(family, text, answer=None):
    """Spans are complete, disjoint, in order, one inside the other, and hold the numbers of their box."""
    answer = answer or family.read(text)
    assert len(answer.item_spans) == len(answer.box_spans) == len(answer.boxes)
    reached = 0
    for box, item, inner in zip(answer.boxes, answer.item_spans, answer.box_spans, strict=True):
        assert reached <= item[0] <= inner[0] < inner[1] <= item[1] <= len(text)
        reached = item[1]
        numbers = [float(number) for number in NUMBER.findall(text[slice(*inner)])]
        shift = family.grammar.shift if family.grammar else 0.0
        assert sorted(number + shift for number in numbers) == pytest.approx(sorted(box))
    return answer


@pytest.mark.parametrize(
    ("family", "text", "items", "boxes"),
    [
        (
            Qwen25VL(),
            ' \n```json\n[\n\t{"bbox_2d": [1, 2, 3, 4], "label": "a"},\n\t{"bbox_2d": [5, 6, 7, 8.5]}\n]\n```',
            ['{"bbox_2d": [1, 2, 3, 4], "label": "a"}', '{"bbox_2d": [5, 6, 7, 8.5]}'],
            ["1, 2, 3, 4", "5, 6, 7, 8.5"],
        ),
        (
            Qwen25VL(),
            '[{"label": "a", "score": 1, "bbox_2d": [1, 2, 3, 4]}]',
            ['{"label": "a", "score": 1, "bbox_2d": [1, 2, 3, 4]}'],
            ["1, 2, 3, 4"],
        ),
        (
            Qwen25VL(),
            '<think>[9, 9, 9, 9]</think> Here: <answer>[{"bbox_2d": ["1", "2", "3", "4"]}, {"bbox_2d": "5 6 7 8"}',
            ['{"bbox_2d": ["1", "2", "3", "4"]}', '{"bbox_2d": "5 6 7 8"}'],
            ['1", "2", "3", "4', "5 6 7 8"],
        ),
        (Qwen25VL(), "so [[1, 2, 3, 4], [5, 6, 7, 8", ["[1, 2, 3, 4]"], ["1, 2, 3, 4"]),
        (
            Qwen25VL(),
            '{"bbox_2d": [[1, 2, 3, 4], [5, 6, 7, 8], [9, 9, 9, 9]], "label": "a"}',
            ['{"bbox_2d": [[1, 2, 3, 4]', "[5, 6, 7, 8]", '[9, 9, 9, 9]], "label": "a"}'],
            ["1, 2, 3, 4", "5, 6, 7, 8", "9, 9, 9, 9"],
        ),
        (
            Qwen25VL(),
            '{"bbox_2d": [1, 2, 3, 4], "part": {"bbox": [5, 6, 7, 8]}, "label": "a"}',
            ['{"bbox_2d": [1, 2, 3, 4], "part": ', '{"bbox": [5, 6, 7, 8]}'],
            ["1, 2, 3, 4", "5, 6, 7, 8"],
        ),
        (
            InternVL(),
            "I see\n<ref>cat</ref><box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>\n<ref>dog</ref> <box>[[9, 9, 9, 9] ]</box> .",
            [
                "<ref>cat</ref><box>[[1, 2, 3, 4]",
                "[5, 6, 7, 8]]</box>",
                "<ref>dog</ref> <box>[[9, 9, 9, 9] ]</box>",
            ],
            ["1, 2, 3, 4", "5, 6, 7, 8", "9, 9, 9, 9"],
        ),
        (
            Qwen2VL(),
            "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>\ndog(5,6),(7,8) cow(1,2",
            ["<|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>", "dog(5,6),(7,8)"],
            ["1,2),(3,4", "5,6),(7,8"],
        ),
        (
            Griffon(),
            "Here: cat - [1,2,3,4] & [5,6,7,8]&dog-[9,9,9,9]",
            ["cat - [1,2,3,4]", "[5,6,7,8]", "dog-[9,9,9,9]"],
            ["1,2,3,4", "5,6,7,8", "9,9,9,9"],
        ),
        (
            PaliGemma(),
            "<loc0002><loc0001><loc0040><loc0030> big cat ; <loc0006><loc0005><loc0080><loc0070> dog",
            ["<loc0002><loc0001><loc0040><loc0030> big cat", "<loc0006><loc0005><loc0080><loc0070> dog"],
            ["0002><loc0001><loc0040><loc0030", "0006><loc0005><loc0080><loc0070"],
        ),
        (
            Florence2(),
            "cat<loc_1><loc_2><loc_3><loc_4><loc_5><loc_6><loc_7><loc_8>dog<loc_9><loc_9><loc_9><loc_9>",
            [
                "cat<loc_1><loc_2><loc_3><loc_4>",
                "<loc_5><loc_6><loc_7><loc_8>",
                "dog<loc_9><loc_9><loc_9><loc_9>",
            ],
            ["1><loc_2><loc_3><loc_4", "5><loc_6><loc_7><loc_8", "9><loc_9><loc_9><loc_9"],
        ),
    ],
)
def test_spans_by_hand(family, text, items, boxes):
    answer = check(family, text)
    assert pieces(text, answer.item_spans) == items
    assert pieces(text, answer.box_spans) == boxes


def test_boxes_before_the_label_that_they_share():
    grammar = ItemGrammar(item="<b>{boxes}</b><l>{label}</l>", box="({x1},{y1},{x2},{y2})")
    text = grammar.write(as_boxes([[1, 2, 3, 4], [5, 6, 7, 8], [9, 9, 9, 9]]), ["cat", "cat", "dog"])
    answer = read_items(text, grammar)
    assert answer.follows_template
    assert answer.labels == ("cat", "cat", "dog")
    assert pieces(text, answer.item_spans) == [
        "<b>(1,2,3,4)",
        "(5,6,7,8)</b><l>cat</l>",
        "<b>(9,9,9,9)</b><l>dog</l>",
    ]


def test_spans_of_boxes_that_are_kept():
    text = "a-[0.1,0.2,0.3,0.4]&b-[1e999,0,0,0]&c-[0.5,0.5,1.5,0.9]"
    found = read_detections(text, Griffon(), (100, 100), (100, 100))
    assert found.labels == ("a", "c")
    assert pieces(text, found.item_spans) == ["a-[0.1,0.2,0.3,0.4]", "c-[0.5,0.5,1.5,0.9]"]
    assert pieces(text, found.box_spans) == ["0.1,0.2,0.3,0.4", "0.5,0.5,1.5,0.9"]


LABELS = st.text(st.characters(categories=["Ll", "Lu", "Nd"], include_characters=" '"), min_size=1, max_size=8)


def damage(text, data):
    """The text after one accident, or none."""
    place = data.draw(st.integers(0, len(text)))
    return data.draw(
        st.sampled_from([
            text,
            text[:place],
            f"{text[:place]}\n{text[place:]}",
            re.sub("['\"]", "", text, count=data.draw(st.integers(1, 4))),
            text[:place] + re.sub("['\"]", "", text[place:], count=1),
            text[:place] + re.sub(r"[\[\](){}<>]", "", text[place:], count=1),
            re.sub(r'("\w+": )', r"\1\1", text, count=data.draw(st.integers(1, 3))),
            f"I think [so]: {text} That's {{all}}.",
            f"<think>{text}</think>{text}",
            f"<think>{text}</think><answer>\n{text}\n</answer> ",
        ])
    )  # fmt: skip


@each_family
@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_each_box_has_its_spans_whatever_happened_to_the_text(family, data):
    size = int(min(family.frame_size((640, 480), (640, 480))))
    numbers = st.floats(0, 1) if size == 1 else st.integers(0, size)
    boxes = data.draw(st.lists(st.tuples(*[numbers] * 4), max_size=6))
    text = family.write(as_boxes(boxes), [data.draw(LABELS) for _ in boxes])
    check(family, damage(text, data))


@each_family
@given(text=st.text(st.sampled_from("[](){}<>/,;&-:. \n\"'0123456789eabloc_bx2refthink"), max_size=200))
@settings(deadline=None, max_examples=100)
def test_each_box_has_its_spans_in_any_text(family, text):
    check(family, text)


@given(data=st.data(), nested=st.recursive(
    st.lists(st.integers(0, 9), min_size=4, max_size=4) | st.text(max_size=3) | st.none(),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["bbox_2d", "label", "bbox", "name", "x"]), inner, max_size=3),
    max_leaves=12,
))  # fmt: skip
@settings(deadline=None, max_examples=300)
def test_each_box_has_its_spans_in_any_json(nested, data):
    text = json.dumps(nested)
    check(Qwen25VL(), text[: data.draw(st.integers(len(text) // 2, len(text)))])


@needs_shared
@pytest.mark.parametrize("file", ["completions/refcoco_val_qwen2.5-vl-3b", "refcoco_val_slice/refcoco_val_slice"])
def test_spans_of_recorded_answers(file):
    lines = (SHARED / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [text for line in lines for text in json.loads(line)["completions"].values()]
    answers = [check(Qwen25VL(), text) for text in texts]
    assert sum(len(answer.boxes) for answer in answers) >= len(texts) - 1
    for text, answer in zip(texts, answers, strict=True):
        items = zip(pieces(text, answer.item_spans), answer.labels, answer.boxes.tolist(), strict=True)
        for item, label, box in items:
            assert label in item
            assert re.fullmatch(r"(?s)\{.*\}|\[[^\[\]]*\]", item), item
            alone = Qwen25VL().read(f"[{item}]")
            assert (alone.labels, alone.boxes.tolist()) == ((label,), [box])
