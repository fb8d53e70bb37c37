import json

import pytest

from tests.shared_data import SHARED, needs_shared
from vr1.data import ReferringDataModule, Selection
from vr1.data.annotated import AnnotatedSource
from vr1.data.questions import Questions
from vr1.data.referring import read_referring

SLICE = SHARED / "refcoco_val_slice"


@pytest.fixture
def make(tmp_path, picture):
    picture("coco/a.jpg")
    picture("b.jpg", (50, 40))

    def write(*items, name="rec.jsonl", **settings):
        lines = [item if isinstance(item, str) else json.dumps(item) for item in items]
        (tmp_path / name).write_text("\n".join(lines))
        return read_referring(tmp_path / name, tmp_path, **settings)

    return write


@needs_shared
def test_the_real_slice():
    path = SLICE / "refcoco_val_slice.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    data = ReferringDataModule(SLICE / "images", val={"refcoco_val": path})
    source = data.build("val")
    assert len(source) == len(lines) == 20
    for record, line in zip(source, lines, strict=True):
        assert record.categories == record.labels == (" ".join(line["expression"].split()),)
        assert record.boxes_xyxy.tolist() == [line["bbox_xyxy"]]
        assert record.image.size == (line["width"], line["height"])
        assert (record.set_name, int(record.crowd.sum()), record.referring) == ("refcoco_val", 0, True)
    assert len({record.image_id for record in source}) == 20
    # The prompt contains the same expression.
    items = [{"image": line["image"], "problem": line["prompt"], "solution": line["bbox_xyxy"]} for line in lines]
    for item, line in zip(items, lines, strict=True):
        assert item["problem"].endswith(f"{line['expression'].rstrip('.')}.")


@pytest.mark.parametrize(
    "item",
    [
        {"image": "coco/a.jpg", "expression": "the cup", "bbox_xyxy": [1, 2, 30, 40], "width": 100, "height": 80},
        {"image": "coco/a.jpg", "normal_caption": "the cup", "problem": "Where?", "solution": [1, 2, 30, 40]},
        {
            "image": ["coco/a.jpg"],
            "conversations": [
                {
                    "from": "human",
                    "value": "<image>Please provide the bounding box coordinate of the region this sentence describes:"
                    " the cup.",
                },
                {"from": "gpt", "value": '```json\n[\n\t{"bbox_2d": [1, 2, 30, 40], "label": "the cup"}\n]\n```'},
            ],
        },
        {"image": "coco/a.jpg", "problem": "the cup", "solution": [[1, 2, 30, 40]]},
    ],
)
def test_forms_of_a_line(make, item):
    for name, lines in (("rec.jsonl", [item, ""]), ("rec.json", [json.dumps([item])])):
        table, problems, _ = make(*lines, name=name)
        assert not len(problems), problems
        assert (table.categories, table.boxes_xyxy.tolist()) == (("the cup",), [[1, 2, 30, 40]])
        assert (table.file_names, table.sizes.tolist()) == (["coco/a.jpg"], [[100, 80]])


def test_one_text_on_one_image_twice_stays_two_questions(make, tmp_path):
    item = {"image": "b.jpg", "expression": "cup", "width": 50, "height": 40}
    make({**item, "bbox_xyxy": [0, 0, 5, 5]}, {**item, "bbox_xyxy": [9, 9, 15, 15]})
    data = ReferringDataModule(tmp_path, train={"all": tmp_path / "rec.jsonl"}, selection=Selection(curriculum=True))
    assert [record.boxes_xyxy.tolist() for record in data.build("train")] in (
        [[[0, 0, 5, 5]], [[9, 9, 15, 15]]],
        [[[9, 9, 15, 15]], [[0, 0, 5, 5]]],
    )


def test_boxes_without_a_format_are_not_guessed(make):
    item = {"image": "b.jpg", "expression": "cup", "bbox": [5, 6, 10, 20]}
    with pytest.raises(ValueError, match=r"rec\.jsonl: line 1 has a 'bbox'.*set box_format to xyxy or xywh"):
        make(item)
    assert make(item, box_format="xywh")[0].boxes_xyxy.tolist() == [[5, 6, 15, 26]]
    assert make(item, box_format="xyxy")[0].boxes_xyxy.tolist() == [[5, 6, 10, 20]]


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        ("{", "line that is not JSON"),
        ("[1]", "line that is no JSON object"),
        ({"expression": "cup", "solution": [1, 2, 3, 4]}, "line without an 'image'"),
        ({"image": "b.jpg", "solution": [1, 2, 3, 4]}, "line without an expression"),
        ({"image": "b.jpg", "expression": "cup"}, "line without four numbers"),
        ({"image": "b.jpg", "expression": "cup", "solution": [1, 2, "3", 4]}, "line without four numbers"),
        ({"image": "b.jpg", "expression": "cup", "solution": [5, 5, 1, 9]}, "box of negative size"),
        ({"image": "b.jpg", "expression": "cup", "solution": [5, 5, 5, 9]}, "box of zero size"),
        ({"image": "b.jpg", "expression": "cup", "solution": [90, 5, 95, 9]}, "box entirely outside its image"),
        ({"image": "b.jpg", "expression": "cup", "solution": [float("nan"), 5, 9, 9]}, "box with NaN"),
        ({"image": "c.jpg", "expression": "cup", "solution": [1, 2, 3, 4]}, "image that cannot be opened"),
        ({"image": "b.jpg", "conversations": [{"value": "x"}]}, "line without four numbers"),
        ({"image": "b.jpg", "conversations": "x", "caption": "cup"}, "line without four numbers"),
    ],
)
def test_faulty_lines(make, tmp_path, item, kind):
    good = {"image": "b.jpg", "expression": "cup", "solution": [1, 2, 3, 4]}
    table, problems, _ = make(good, item, good)
    assert len(table) == 2
    [(reported, [where])] = problems.by_kind.items()
    assert reported.startswith(kind)
    assert where.startswith("line 2")
    with pytest.raises(ValueError, match=r"rec\.jsonl: 1 problem\n.*\nFix the data, or set bad_records: skip"):
        ReferringDataModule(tmp_path, test={"all": tmp_path / "rec.jsonl"}).build("test")


def test_a_line_may_hold_a_line_separator(make):
    lines = json.dumps({"image": "b.jpg", "expression": "red\u2028 cup", "solution": [1, 2, 3, 4]}, ensure_ascii=False)
    table, problems, _ = make(lines)
    assert (table.categories, len(problems)) == (("red cup",), 0)


def test_a_format_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="box_format='cxcywh' must be xyxy or xywh"):
        ReferringDataModule(tmp_path, box_format="cxcywh")


def test_files_that_are_none(make, tmp_path):
    with pytest.raises(ValueError, match=r"gone\.jsonl: no such file"):
        read_referring(tmp_path / "gone.jsonl", tmp_path)
    with pytest.raises(ValueError, match=r"rec\.json: not JSON"):
        make("[1, 2", name="rec.json")
    with pytest.raises(ValueError, match=r"data\.val: no file is named"):
        ReferringDataModule(tmp_path).build("val")


def test_many_expressions_need_no_table_of_all_pairs(tmp_path, picture):
    picture("a.jpg")
    item = {"image": "a.jpg", "width": 100, "height": 80, "solution": [1, 2, 30, 40]}
    lines = [json.dumps({**item, "expression": f"cup number {number}"}) for number in range(30_000)]
    (tmp_path / "rec.jsonl").write_text("\n".join(lines))
    source = AnnotatedSource(
        tmp_path / "rec.jsonl",
        tmp_path,
        questions=Questions(task="grounding"),
        header_checks=3,
        read=lambda path: read_referring(path, tmp_path),
    )
    assert (len(source), source[29_999].labels) == (30_000, ("cup number 29999",))
