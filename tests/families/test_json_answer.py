import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.families.linear_time import takes_linear_time
from tests.shared_data import SHARED, needs_shared
from vr1.families.json_answer import MAX_ITEMS, read_json_answer
from vr1.families.qwen import Qwen25VL
from vr1.types import as_boxes

BOX = '{"bbox_2d": [1, 2, 30, 40], "label": "cat"}'


@pytest.mark.parametrize(
    "completion",
    [
        f"[{BOX}]",
        f"```json\n[{BOX}]\n```",
        f"```json\n[\n\t{BOX}\n]\n```  \n",
        "[]",
        "```json\n[]\n```",
        '[{"bbox_2d": [1.5, -2, 30, 40], "label": "", "score": 0.5}]',
        '[{"bbox_2d": [1, 2, 30, 40]}]',
        '[{"bbox_2d": [NaN, 2, 30, 1e400], "label": "cat"}]',
    ],
)
def test_follows_the_template(completion):
    assert read_json_answer(completion).follows_template


@pytest.mark.parametrize(
    "completion",
    [
        "",
        BOX,
        f"Here: [{BOX}]",
        f"[{BOX}] There.",
        f"```\n[{BOX}]\n```",
        f"```json\n[{BOX}]\n```json\n[{BOX}]\n```",
        f"<answer>[{BOX}]</answer>",
        f"<think>A cat.</think>\n<answer>[{BOX}]</answer>",
        f"[{BOX},]",
        f"[{BOX}",
        "[[1, 2, 30, 40]]",
        "[1, 2, 30, 40]",
        '[{"bbox": [1, 2, 30, 40], "label": "cat"}]',
        '[{"bbox_2d": [1, 2, 30], "label": "cat"}]',
        '[{"bbox_2d": ["1", 2, 30, 40], "label": "cat"}]',
        '[{"bbox_2d": [true, 2, 30, 40], "label": "cat"}]',
        '[{"bbox_2d": [1, 2, 30, 40], "label": 3}]',
        "[{'bbox_2d': [1, 2, 30, 40], 'label': 'cat'}]",
    ],
)
def test_does_not_follow_the_template(completion):
    assert not read_json_answer(completion).follows_template


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (f"I see [it]! It's here: [{BOX}] ok", [("cat", 1, 2, 30, 40)]),
        (BOX, [("cat", 1, 2, 30, 40)]),
        (f"[{BOX}, {BOX[:-4]}", [("cat", 1, 2, 30, 40)]),
        (f"```json\n[{BOX}, {{", [("cat", 1, 2, 30, 40)]),
        (f"<think>Maybe [5, 6, 7, 8].</think><answer>[{BOX}]</answer>", [("cat", 1, 2, 30, 40)]),
        (f"<think>Maybe [5, 6, 7, 8].</think> [{BOX}]", [("cat", 1, 2, 30, 40)]),
        ("<think>Maybe [5, 6, 7, 8].</think> None.", []),
        (f"[{BOX}] <answer></answer>", [("cat", 1, 2, 30, 40)]),
        (f"<answer>```json\n[{BOX}]\n```json\n", [("cat", 1, 2, 30, 40)]),
        ("{'bbox_2d': [1, 2, 30, 40], 'label': 'the man's hat'}", [("the man's hat", 1, 2, 30, 40)]),
        ('{"bbox_2d": [1, 2, 30, 40], "label": "the "red" one"}', [('the "red" one', 1, 2, 30, 40)]),
        ("{bbox_2d: [1, 2, 30, 40], label: cat}", [("cat", 1, 2, 30, 40)]),
        ("{'bbox_2d': [1, 2, 30, 40], 'label': 'it\\'s'}", [("it's", 1, 2, 30, 40)]),
        ('[{"bbox": [1, 2, 30, 40], "name": "caf\\u00e9"}]', [("café", 1, 2, 30, 40)]),
        ('[{"box": [1, 2, 30, 40], "label": 20}]', [("20", 1, 2, 30, 40)]),
        ('[{"bbox_2d": ["1", "2.5", "30", "4e1"], "label": "cat"}]', [("cat", 1, 2.5, 30, 40)]),
        ('[{"bbox_2d": "[1, 2, 30, 40]", "label": "cat"}]', [("cat", 1, 2, 30, 40)]),
        ('{"objects": [[1, 2, 3, 4], [5, 6, 7, 8]]}', [("", 1, 2, 3, 4), ("", 5, 6, 7, 8)]),
        ('{"objects": [' + BOX + "]}", [("cat", 1, 2, 30, 40)]),
        ('{"bbox_2d": [[1, 2, 3, 4], [5, 6, 7, 8]], "label": "a"}', [("a", 1, 2, 3, 4), ("a", 5, 6, 7, 8)]),
        ("[[[[1, 2, 3, 4]]]]", [("", 1, 2, 3, 4)]),
        ("[1, 2, 3, 4], [5, 6, 7, 8]", [("", 1, 2, 3, 4), ("", 5, 6, 7, 8)]),
        ("[[1, 2, 3, 4], [5, 6", [("", 1, 2, 3, 4)]),
        ('[{"bbox_2d": [1, 2, 3, 4}, ' + BOX + "]", [("", 1, 2, 3, 4), ("cat", 1, 2, 30, 40)]),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "a\n}, ' + BOX + "]", [("a", 1, 2, 3, 4), ("cat", 1, 2, 30, 40)]),
        ("[-1, 9, 3, 4]", [("", -1, 9, 3, 4)]),
        ("No such object. {} [] [see above]", []),
    ],
)
def test_reads_what_a_person_would_read(completion, expected):
    answer = read_json_answer(completion)
    assert [(label, *box) for label, box in zip(answer.labels, answer.boxes.tolist(), strict=True)] == expected


@pytest.mark.parametrize(
    "box",
    ["[1, 2, 3]", "[]", "null", "[1e400, 2, 3, 4]", "[NaN, 2, 3, 4]", "[1, Infinity, 3, 4]", '"everywhere"', "{}"],
)
def test_an_unusable_box_is_a_problem_and_not_a_box(box):
    answer = read_json_answer(f'[{{"bbox_2d": {box}, "label": "dog"}}, {BOX}]')
    assert answer.labels == ("cat",)
    assert len(answer.problems) == (0 if box == "[]" else 1)


def test_reads_many_boxes_and_stops_at_the_limit():
    ten_thousand = read_json_answer(f"[{', '.join([BOX] * MAX_ITEMS)}]")
    assert len(ten_thousand.boxes) == MAX_ITEMS
    assert ten_thousand.follows_template
    one_more = read_json_answer(f"[{', '.join([BOX] * (MAX_ITEMS + 1))}]")
    assert len(one_more.boxes) == MAX_ITEMS
    assert not one_more.follows_template
    assert "nothing is read" in one_more.problems[-1]
    bare = read_json_answer(f"[{', '.join(['[1, 2, 3, 4]'] * (MAX_ITEMS + 1))}]")
    assert len(bare.boxes) == MAX_ITEMS


def test_reads_a_label_of_any_length():
    label = "猫" * 100_000
    assert read_json_answer(f'[{{"bbox_2d": [1, 2, 3, 4], "label": "{label}"}}]').labels == (label,)


@given(st.text(st.sampled_from("[]{}\"',:\\\n 0123456789.-e`<>/abx\ud800é"), max_size=200))
@settings(deadline=None, max_examples=500)
def test_never_raises_on_fragments(completion):
    answer = read_json_answer(completion)
    assert answer.boxes.shape == (len(answer.labels), 4)
    assert np.isfinite(answer.boxes).all()


@given(st.text())
@settings(deadline=None)
def test_never_raises_on_text(completion):
    read_json_answer(completion)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.sampled_from(["bbox_2d", "label", "bbox", "name", "x"]), inner, max_size=3)
    ),
)


@given(JSON)
@settings(deadline=None, max_examples=300)
def test_never_raises_on_json(value):
    answer = read_json_answer(json.dumps(value))
    assert answer.boxes.shape == (len(answer.labels), 4)


BOXES = st.lists(st.tuples(*[st.integers(-10_000, 10_000)] * 4), max_size=12)


@given(BOXES, st.data())
@settings(deadline=None)
def test_reads_what_the_family_writes(boxes, data):
    labels = tuple(data.draw(st.text()) for _ in boxes)
    answer = read_json_answer(Qwen25VL().write(as_boxes(boxes), labels))
    assert answer.follows_template
    assert answer.boxes.tolist() == as_boxes(boxes).tolist()
    assert answer.labels == labels


@given(BOXES, st.data())
@settings(deadline=None)
def test_both_readers_read_the_same(boxes, data):
    labels = tuple(data.draw(st.text(st.characters(exclude_categories=["Cs"]))) for _ in boxes)
    items = [{"bbox_2d": box, "label": label} for box, label in zip(boxes, labels, strict=True)]
    strict, lenient = (read_json_answer(text) for text in (json.dumps(items), "Well: " + json.dumps(items)))
    assert strict.boxes.tolist() == lenient.boxes.tolist()
    assert strict.labels == lenient.labels


UNITS = [
    "[",
    "{",
    "]",
    '"',
    "'",
    "\\",
    "```",
    '["',
    "['",
    '[{"a":',
    "[]",
    "{}",
    "[1",
    '["\\',
    "9",
    "[[1,2,3,4],",
    "<think>",
]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("start", ["", "x [{", '[{"bbox_2d": [1, 2, 3, 4], "label": "'])
def test_takes_linear_time(unit, start):
    assert takes_linear_time(read_json_answer, lambda length: start + unit * (length // len(unit)), 20_000, 0.02)


def recorded_answers():
    files = {
        "completions/refcoco_val_qwen2.5-vl-3b.jsonl": 750,
        "refcoco_val_slice/refcoco_val_slice.jsonl": 60,
    }
    for name, count in files.items():
        lines = (SHARED / name).read_text(encoding="utf-8").splitlines()
        answers = [item for line in lines for item in json.loads(line)["completions"].items()]
        assert len(answers) == count
        yield from answers


@needs_shared
def test_every_recorded_answer_yields_its_boxes():
    numbers = Counter()
    for model, text in recorded_answers():
        answer = read_json_answer(text)
        numbers[len(answer.boxes)] += 1
        assert answer.problems == ()
        # One fenced list ends in an item of another form.
        in_form = text.strip().startswith("```json") and '{"answer":' not in text
        assert answer.follows_template == in_form, (model, text)
        # One answer says in words that there is nothing to find, and gives an empty list.
        assert len(answer.boxes) or '"bounding_box": []' in text
    # Two boxes: two elephants, two bananas, and one box given twice.
    assert numbers == {0: 1, 1: 806, 2: 3}


@needs_shared
def test_how_many_recorded_answers_follow_the_template():
    followed, total = Counter(), Counter()
    for model, text in recorded_answers():
        total[model] += 1
        followed[model] += read_json_answer(text).follows_template
    assert followed["baseline"] == total["baseline"] == 250
    assert followed["sft_500"] == 250
    assert followed["r1_600"] == 0
