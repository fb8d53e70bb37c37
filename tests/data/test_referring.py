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
        ({"image": "b.jpg", "expression": "cup", "solution": [1, 2, "three", 4]}, "line without four numbers"),
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


BOX = [[10, 20, 30, 40]]


def answers(text, **more):
    """A line whose answer is in a conversation."""
    turns = [{"from": "system", "value": "x"}, {"from": "human", "value": "<image>\nplayer 23"}]
    return {"image": "b.jpg", "conversations": [*turns, {"from": "gpt", "value": text}], **more}


@pytest.mark.parametrize(
    "item",
    [
        answers('```json\n[{"bbox_2d": [10, 20, 30, 40], "label": "player 23"}]\n```'),
        answers('{"label": "player 23 of 2 teams", "bbox": [10, 20, 30, 40]}'),
        answers("Player 23 is at [10, 20, 30, 40]."),
        answers("The player (number 23) is at (10,20),(30,40)"),
        answers("[[10, 20], [30, 40]]"),
        answers("<think>player 23 of [1, 2]</think><answer>[10, 20, 30, 40]</answer>"),
        answers("10 20 30 40"),
        {"image": "b.jpg", "problem": "player 23", "solution": "[10, 20, 30, 40]"},
        {"image": "b.jpg", "problem": "player 23", "solution": ["10", "20", "30.0", 40]},
        {"image": "b.jpg", "problem": "<ref>player 23</ref>", "solution": [{"bbox_2d": [10, 20, 30, 40]}]},
        {"images": ["b.jpg"], "problem": "Where is <|object_ref_start|>player 23<|object_ref_end|>?", "solution": BOX},
        {
            "images": [{"path": "b.jpg"}],
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "player 23"}]},
                {"role": "assistant", "content": "[10, 20, 30, 40]"},
            ],
        },
        {
            "image": "b.jpg",
            "conversations": [
                {
                    "from": "human",
                    "value": "<image>\nPlease provide the bounding box coordinate of the region this sentence"
                    " describes: <ref>player 23</ref>",
                },
                {"from": "gpt", "value": "[10, 20, 30, 40]"},
            ],
        },
    ],
)
def test_the_box_and_no_other_number_is_read(make, item):
    table, problems, _ = make(item)
    assert not len(problems), problems
    assert (table.categories, table.boxes_xyxy.tolist()) == (("player 23",), BOX)


def test_every_question_of_a_conversation_counts(make):
    item = answers("[10, 20, 30, 40]")
    item["conversations"] += [{"from": "human", "value": "the cup"}, {"from": "gpt", "value": "[1, 2, 3, 4]"}]
    table, problems, _ = make(item)
    assert [table.categories[row] for row in table.category_rows] == ["player 23", "the cup"]
    assert table.boxes_xyxy.tolist() == [[10, 20, 30, 40], [1, 2, 3, 4]]
    item["conversations"][-1]["value"] = "there is none"
    table, problems, _ = make(item)
    # Half of a line is not read either.
    assert (len(table), list(problems.by_kind)) == (0, [next(iter(problems.by_kind))])
    assert next(iter(problems.by_kind)).startswith("line without four numbers")


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        (answers("[1, 2, 3, 4] and [5, 6, 7, 8]"), "line with several boxes"),
        (answers('[{"bbox_2d": [1, 2, 3, 4]}, {"bbox_2d": [5, 6, 7, 8]}]'), "line with several boxes"),
        (answers("[1, 2, 3]"), "line without four numbers"),
        (answers("<loc0010><loc0020><loc0100><loc0200>"), "line without four numbers"),
        (answers("[1, 2, 3, 4]", image=["a.jpg", "b.jpg"]), "line with several images: set scene to last or first"),
        (answers("[1, 2, 99, 30]"), "box that reaches outside its image: set frame"),
    ],
)
def test_lines_that_are_not_one_box(make, item, kind):
    good = {"image": "b.jpg", "expression": "cup", "solution": [1, 2, 3, 4]}
    table, problems, _ = make(good, item)
    [(reported, [where])] = problems.by_kind.items()
    assert reported.startswith(kind)
    assert where.startswith("line 2")
    assert len(table) == 1


# One box of b.jpg, which is 50 x 40, in several units.
FRAMES = {
    "pixels": ([10, 20, 30, 40], "pixels"),
    "per mille": ([200, 500, 600, 1000], 1000),
    "shares": ([0.2, 0.5, 0.6, 1.0], 1),
    "percent": ([20, 50, 60, 100], 100),
    "input": ([112, 280, 336, 560], "input"),
}


@pytest.mark.parametrize(("box", "frame"), FRAMES.values(), ids=FRAMES)
def test_frames(make, tmp_path, box, frame):
    item = {"image": "b.jpg", "expression": "cup", "bbox_xyxy": box, "input_width": 560, "input_height": 560}
    make(item, frame=frame)
    data = ReferringDataModule(tmp_path, train={"all": tmp_path / "rec.jsonl"}, frame=frame)
    assert data.build("train")[0].boxes_xyxy.round(9).tolist() == BOX
    x1, y1, x2, y2 = box
    table, *_ = make({**item, "bbox": [x1, y1, x2 - x1, y2 - y1], "bbox_xyxy": None}, frame=frame, box_format="xywh")
    assert table.boxes_xyxy.round(9).tolist() == BOX


def test_a_frame_that_needs_the_size_of_the_input(make):
    item = {"image": "b.jpg", "expression": "cup", "bbox_xyxy": [112, 280, 336, 560]}
    table, problems, _ = make(item, frame="input")
    assert len(table) == 0
    assert list(problems.by_kind) == [
        "line without input_width and input_height or resized_width and resized_height, which frame: input needs"
    ]
    table, *_ = make({**item, "resized_width": "560", "resized_height": 560}, frame="input")
    assert table.boxes_xyxy.round(9).tolist() == BOX


def test_a_frame_of_inputs_whose_size_the_processor_knows(make, tmp_path):
    resized = {(50, 40): (560, 560), (100, 80): (200, 80)}
    lines = [
        {"image": "b.jpg", "expression": "cup", "bbox_xyxy": [112, 280, 336, 560]},
        {
            "image": "coco/a.jpg",
            "expression": "jug",
            "bbox_xyxy": [20, 8, 40, 16],
            "input_width": 20,
            "input_height": 16,
        },
        {"image": "coco/a.jpg", "expression": "can", "bbox_xyxy": [20, 8, 40, 16]},
    ]
    lines[1]["bbox_xyxy"] = [2, 4, 10, 16]
    table, problems, notes = make(*lines, frame="input", input_size=resized.get)
    assert not len(problems)
    # The line's own size counts where there is one.
    assert table.boxes_xyxy.round(9).tolist() == [*BOX, [10, 20, 50, 80], [10, 8, 20, 16]]
    assert notes[0].startswith(
        "2 boxes are read in pixels of the input that the model's processor makes of their images"
    )
    assert "such as 560 x 560 of 50 x 40" in notes[0]


def test_a_frame_of_inputs_of_the_model_in_training(make, tmp_path, encoder):
    make(*[{"image": "b.jpg", "expression": "cup", "bbox_xyxy": [14, 28, 42, 56]}] * 2)
    data = ReferringDataModule(tmp_path, train={"all": tmp_path / "rec.jsonl"}, frame="input")
    with pytest.raises(ValueError, match="line without input_width and input_height"):
        data.build("train")
    data.take_input_sizes(encoder.input_size)
    [record, _] = data.build("train")
    # The model writes these very numbers.
    [size] = encoder([record]).input_sizes
    assert size == encoder.input_size((50, 40)) != (50, 40)
    written = encoder.family.from_image(record.boxes_xyxy, record.image_size, size)
    assert written.round(9).tolist() == [[14, 28, 42, 56]]


@pytest.mark.parametrize("scene", ["last", "first"])
def test_several_images_in_a_line(make, tmp_path, picture, scene):
    picture("crop.jpg", (20, 10))
    names = ["CROP.jpg", "b.jpg"] if scene == "last" else ["b.jpg", {"path": "crop.jpg"}]
    lines = [
        {"images": names, "expression": "<image> is in <image>", "solution": [10, 20, 30, 40]},
        {"image": "b.jpg", "expression": "cup", "solution": [10, 20, 30, 40]},
    ]
    make(*lines, scene=scene)
    data = ReferringDataModule(tmp_path, train={"all": tmp_path / "rec.jsonl"}, scene=scene)
    with_crop, alone = data.build("train")
    assert with_crop.image.size == (50, 40)
    assert [image.size for image in with_crop.prompt_images] == ([(20, 10), (50, 40)], [(50, 40), (20, 10)])[
        scene == "first"
    ]
    assert with_crop.boxes_xyxy.tolist() == alone.boxes_xyxy.tolist() == [[10, 20, 30, 40]]
    assert with_crop.categories == ("is in",)
    assert [image.size for image in alone.prompt_images] == [(50, 40)]
    selected = ReferringDataModule(
        tmp_path, train={"all": tmp_path / "rec.jsonl"}, scene=scene, selection=Selection(max_objects=1)
    )
    assert len(selected.build("train")[0].prompt_images) == 2


@pytest.mark.parametrize("scene", ["last", "first"])
def test_the_images_of_a_line_are_shown_in_its_order(make, tmp_path, picture, scene):
    sizes = {"one.jpg": (20, 10), "two.jpg": (21, 10), "three.jpg": (22, 10), "b.jpg": (50, 40)}
    names = list(sizes) if scene == "last" else ["b.jpg", "one.jpg", "two.jpg", "three.jpg"]
    for name in names:
        picture(name, sizes[name])
    make({"images": names, "expression": "cup", "solution": [10, 20, 30, 40]}, scene=scene)
    [record] = ReferringDataModule(tmp_path, train={"all": tmp_path / "rec.jsonl"}, scene=scene).build("train")
    assert record.image.size == (50, 40)
    assert [image.size for image in record.prompt_images] == [sizes[name] for name in names]


def test_a_further_image_that_is_missing(make):
    item = {"images": ["gone.jpg", "b.jpg"], "expression": "cup", "solution": [1, 2, 3, 4]}
    table, problems, _ = make(item, {**item, "images": ["b.jpg"]}, scene="last")
    [(kind, [where])] = problems.by_kind.items()
    assert kind.startswith("image that cannot be opened")
    assert "gone.jpg" in kind
    assert where.startswith("line 1")
    assert len(table) == 1


def test_a_place_of_the_scene_that_is_none(tmp_path):
    with pytest.raises(ValueError, match=r"data\.scene='middle' must be last or first"):
        ReferringDataModule(tmp_path, scene="middle")


@pytest.mark.parametrize("frame", [None, "pixels", 1000])
def test_shares_are_never_taken_for_another_unit(make, frame):
    items = [{"image": "b.jpg", "expression": "cup", "solution": [0.2, 0.5, 0.6, share]} for share in (0.9, 1)]
    with pytest.raises(ValueError, match=r"rec\.jsonl: all boxes lie in 0\.\.1.*set frame to 1 \(now"):
        make(*items, frame=frame)


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("<ref>player 23</ref><box>[[200, 500, 600, 1000]]</box>", BOX),
        ("<|box_start|>(200,500),(600,1000)<|box_end|>", BOX),
        ('[{"box_2d": [500, 200, 1000, 600], "label": "player 23"}]', BOX),
    ],
)
def test_boxes_of_models_that_count_in_0_to_1000(make, text, boxes):
    with pytest.raises(ValueError, match=r"line 1 writes its box as .* in 0\.\.1000; set frame to 1000"):
        make(answers(text))
    assert make(answers(text), frame=1000)[0].boxes_xyxy.tolist() == boxes


def test_boxes_in_0_to_1000_that_nothing_marks(make, picture):
    picture("large.jpg", (1920, 1300))
    large = [{"image": "large.jpg", "expression": f"cup {n}", "solution": [n, 2, 900 + n, 1000 - n]} for n in range(10)]
    small = [{**item, "image": "b.jpg"} for item in large]
    for items in (large, small):
        with pytest.raises(ValueError, match=r"all boxes lie in 0\.\.1000, whatever the size of the image"):
            make(*items)
        assert len(make(*items, frame=1000)[0]) == 10
    assert make(*large, frame="pixels")[0].boxes_xyxy[1].tolist() == [1, 2, 901, 999]
    # One box beyond shows that they are pixels.
    assert len(make(*large, {**large[0], "solution": [9, 9, 1100, 1200]})[0]) == 11


@pytest.mark.parametrize("frame", ["image", 0, -1, True])
def test_a_frame_that_is_none(tmp_path, frame):
    with pytest.raises(ValueError, match=f"data.frame={frame!r} must be pixels, input, or the number"):
        ReferringDataModule(tmp_path, frame=frame)


def test_names_of_another_machine(make):
    table, problems, _ = make({"image": "coco\\A.JPG", "expression": "cup", "solution": [1, 2, 3, 4]})
    assert (len(problems), table.sizes.tolist()) == (0, [[100, 80]])
