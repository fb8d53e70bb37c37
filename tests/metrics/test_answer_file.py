import json

import pytest

from vr1.errors import UserError
from vr1.metrics.answer_file import complete_lines, read_answer_lines, read_completions

GOOD = {
    "completion": "[]",
    "boxes_xyxy": [[1, 2, 3, 4.5]],
    "labels": ["cat"],
    "image_size": [10, 20],
    "input_size": [28, 56],
}


def read(tmp_path, *lines):
    file = tmp_path / "answers.jsonl"
    file.write_bytes(b"\n".join(lines))
    return list(read_answer_lines(file))


def test_reads_a_line(tmp_path):
    (line,) = read(tmp_path, json.dumps(GOOD | {"id": 7}).encode())
    answer = line.answer
    assert answer.completion == "[]"
    assert answer.targets.boxes_xyxy.tolist() == [[1, 2, 3, 4.5]]
    assert answer.targets.labels == ("cat",)
    assert (answer.image_size, answer.input_size) == ((10, 20), (28, 56))
    assert line.fields["id"] == 7


def test_image_without_an_object_and_box_without_area(tmp_path):
    empty, point = read(
        tmp_path,
        json.dumps(GOOD | {"boxes_xyxy": [], "labels": []}).encode(),
        json.dumps(GOOD | {"boxes_xyxy": [[5, 5, 5, 5]]}).encode(),
    )
    assert empty.answer.targets.boxes_xyxy.shape == (0, 4)
    assert len(point.answer.targets) == 1


def test_blank_lines_line_ends_and_a_byte_order_mark(tmp_path):
    good = json.dumps(GOOD).encode()
    assert len(read(tmp_path, b"\xef\xbb\xbf" + good + b"\r", b"", b"  ", good, b"")) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not JSON .*one JSON object a line"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[]", "a list instead of an object"),
        (b'{"labels": [], "labels": []}', '"labels" is given twice'),
        ({"completion": None}, '"completion" is no text'),
        ({"boxes_xyxy": None}, '"boxes_xyxy" is no list'),
        ({"boxes_xyxy": [[1, 2, 3]]}, r'"boxes_xyxy"\[0\] is not four finite numbers'),
        ({"boxes_xyxy": [1, 2, 3, 4], "labels": ["a"] * 4}, r'"boxes_xyxy"\[0\] is not four'),
        ({"boxes_xyxy": [[1, 2, 3, "4"]]}, r"\[0\] is not four"),
        ({"boxes_xyxy": [[1, 2, 3, True]]}, r"\[0\] is not four"),
        ({"boxes_xyxy": [[1, 2, 3, float("nan")]]}, r"\[0\] is not four"),
        ({"boxes_xyxy": [[1, 2, 3, 10**400]]}, r"\[0\] is not four"),
        ({"boxes_xyxy": [[5, 2, 3, 4]]}, "x2 < x1.*not a corner and a size"),
        ({"labels": "cat"}, '"labels" is no list'),
        ({"labels": [1]}, '"labels" is no list'),
        ({"labels": ["a", "b"]}, '1 in "boxes_xyxy" but 2 in "labels"'),
        ({"image_size": [0, 20]}, '"image_size" is not a width and a height above 0'),
        ({"input_size": [10]}, '"input_size" is not'),
        ({"input_size": [float("inf"), 1]}, '"input_size" is not'),
        ({"input_size": {}}, '"input_size" is not'),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    raw = line if isinstance(line, bytes) else json.dumps(GOOD | line).encode()
    with pytest.raises(UserError, match=rf"answers\.jsonl:3: .*{message}"):
        read(tmp_path, json.dumps(GOOD).encode(), b"", raw)


@pytest.mark.parametrize("key", GOOD)
def test_a_missing_field_is_named(tmp_path, key):
    with pytest.raises(UserError, match=f':1: no "{key}"'):
        read(tmp_path, json.dumps({name: value for name, value in GOOD.items() if name != key}).encode())


RECORDED = GOOD | {"image": "a.jpg", "image_id": 4, "instruction": "Find cats.", "set": "pets", "scores": [0.5]}


def test_an_interrupted_evaluation_leaves_its_complete_lines(tmp_path):
    line = json.dumps(RECORDED)
    cut, zeros, missing = tmp_path / "cut.jsonl", tmp_path / "zeros.jsonl", tmp_path / "missing.jsonl"
    cut.write_text(f"{line}\n{line[:40]}")
    zeros.write_bytes(b"\0" * 64 + b"\n" + line.encode() + b"\n")
    assert list(complete_lines([cut, zeros, missing])) == [f"{line}\n"] * 2


def test_the_first_answer_to_a_question_counts(tmp_path):
    file = tmp_path / "answers.jsonl"
    lines = [RECORDED, RECORDED | {"completion": "later"}, RECORDED | {"instruction": "Find dogs.", "scores": []}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    completions = read_completions(file)
    assert [(known.completion, known.scores) for known in completions.values()] == [("[]", (0.5,)), ("[]", ())]
    assert next(iter(completions)) == ("pets", 4, "a.jpg", "Find cats.", (28, 56))


def test_what_is_written_is_read_again(tmp_path):
    full = RECORDED | {
        "categories": ["cat"],
        "areas": [3.5],
        "crowd": [{"box_xyxy": [0.0, 0.0, 9.0, 9.0], "label": "cat", "area": 81.0}],
        "read": {"boxes_xyxy": [[1.0, 2.0, 3.0, 4.0]], "labels": ["Cat."]},
    }
    (line,) = read(tmp_path, json.dumps(full).encode())
    assert line.answer.to_json() == full
    assert len(line.answer.true_boxes) == 2
    assert line.answer.targets.labels == ("cat",)


@pytest.mark.parametrize(
    ("read_boxes", "message"),
    [
        ([], '"read" is no object with'),
        ({"boxes_xyxy": [[1, 2, 3, 4]], "labels": []}, '1 boxes but 0 labels in "read"'),
        ({"boxes_xyxy": [[3, 2, 1, 4]], "labels": ["cat"]}, r'"read.boxes_xyxy"\[0\] = .* has x2 < x1'),
        ({"boxes_xyxy": [], "labels": []}, '1 in "scores" but 0 in "read"'),
    ],
)
def test_wrong_predicted_boxes_are_named(tmp_path, read_boxes, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, json.dumps(RECORDED | {"read": read_boxes}).encode())
