import json

import pytest

from vr1.metrics.answer_file import InputError, read_answer_lines

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
    assert line.completion == "[]"
    assert line.targets.boxes_xyxy.tolist() == [[1, 2, 3, 4.5]]
    assert line.targets.labels == ("cat",)
    assert (line.image_size, line.input_size) == ((10, 20), (28, 56))
    assert line.fields["id"] == 7


def test_image_without_an_object_and_box_without_area(tmp_path):
    empty, point = read(
        tmp_path,
        json.dumps(GOOD | {"boxes_xyxy": [], "labels": []}).encode(),
        json.dumps(GOOD | {"boxes_xyxy": [[5, 5, 5, 5]]}).encode(),
    )
    assert empty.targets.boxes_xyxy.shape == (0, 4)
    assert len(point.targets) == 1


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
    with pytest.raises(InputError, match=rf"answers\.jsonl:3: .*{message}"):
        read(tmp_path, json.dumps(GOOD).encode(), b"", raw)


@pytest.mark.parametrize("key", GOOD)
def test_a_missing_field_is_named(tmp_path, key):
    with pytest.raises(InputError, match=f':1: no "{key}"'):
        read(tmp_path, json.dumps({name: value for name, value in GOOD.items() if name != key}).encode())
