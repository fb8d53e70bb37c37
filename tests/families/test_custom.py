"""A family from a YAML file alone, through the parser that the command line uses."""

import pytest
from jsonargparse import ArgumentParser

from vr1.families import CustomFamily, Family, ItemGrammar, Wording
from vr1.types import as_boxes

YAML = """
family:
  class_path: vr1.families.CustomFamily
  init_args:
    frame: {frame}
    wording: {{one: "Find every {{categories}}.", several: "Find these: {{categories}}."}}
    grammar: {{item: "{{label}}: {{box}}", box: "({{x1}},{{y1}},{{x2}},{{y2}})", separator: "; ", empty: nothing}}
    markers: ["<b>"]
"""


def parsed(text):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Family, "family")
    return parser.instantiate(parser.parse_string(text)).family


@pytest.mark.parametrize(("frame", "expected"), [("1000", 1000.0), ("input", "input"), ("102.5", 102.5)])
def test_a_yaml_file_says_it_all(frame, expected):
    family = parsed(YAML.format(frame=frame))
    assert isinstance(family, CustomFamily)
    assert family.frame == expected
    assert family.markers == ("<b>",)
    assert family.instruction(["cat"]) == "Find every cat."
    assert family.instruction(["cat", "dog"]) == "Find these: cat, dog."
    text = family.write(as_boxes([[1, 2, 30, 40], [5, 6, 70, 80]]), ["cat", "dog"])
    assert text == "cat: (1,2,30,40); dog: (5,6,70,80)"
    assert family.read(text).labels == ("cat", "dog")
    assert family.read("Nothing").follows_template is False
    assert family.read("nothing").follows_template


def test_without_a_grammar_the_answer_is_json():
    family = parsed(
        "family: {class_path: vr1.families.CustomFamily, init_args: {frame: image, wording: {one: '{categories}?'}}}"
    )
    text = family.write(as_boxes([[1, 2, 30, 40]]), ["cat"])
    assert text.startswith("```json")
    assert family.read(text).boxes.tolist() == [[1, 2, 30, 40]]
    assert family.frame_size((640, 480), (64, 48)) == (640.0, 480.0)


def test_json_in_a_frame_of_one_has_decimals():
    """As LFM2.5-VL writes it."""
    family = parsed(
        "family: {class_path: vr1.families.CustomFamily, init_args: {frame: 1, box_key: bbox, wording: {one:"
        " '{categories}?'}}}"
    )
    boxes = as_boxes([[0.125, 0.25, 0.5, 1], [0, 0.0004, 0.9996, 0.333333]])
    text = family.write(boxes, ["cat", "dog"])
    assert '{"bbox": [0.125, 0.25, 0.5, 1.0], "label": "cat"}' in text
    answer = family.read(text)
    assert answer.follows_template
    assert abs(answer.boxes - boxes).max() <= 0.0005
    assert family.to_image(answer.boxes, (400, 200), (56, 56))[0].tolist() == [50, 50, 200, 200]


@pytest.mark.parametrize("frame", [1, 0.5])
def test_a_grammar_of_whole_numbers_in_a_frame_of_one_is_refused(frame):
    with pytest.raises(ValueError, match=rf"too coarse for family\.frame={frame}; .* as in {{x1:\.3f}}"):
        CustomFamily(frame=frame, wording=Wording(one="{categories}"), grammar=ItemGrammar())
    grammar = ItemGrammar(box="[{x1:.3f}, {y1:.3f}, {x2:.3f}, {y2:.3f}]")
    CustomFamily(frame=frame, wording=Wording(one="{categories}"), grammar=grammar)


Y_FIRST = """
family:
  class_path: vr1.families.CustomFamily
  init_args: {frame: 1000, wording: {one: "Find {categories}."}, box_key: box_2d, y_first: true}
"""


def test_json_with_y_before_x():
    family = parsed(Y_FIRST)
    text = family.write(as_boxes([[10, 20, 30, 40]]), ["cat"])
    assert '{"box_2d": [20, 10, 40, 30], "label": "cat"}' in text
    for written in (text, f"Here: {text}", text.replace('"', "'"), text[:-6]):
        assert family.read(written).boxes.tolist() == [[10, 20, 30, 40]]
    assert family.read(text).follows_template
    assert not family.read(text.replace("box_2d", "bbox_2d")).follows_template


def test_the_order_of_a_grammar_stands_in_the_grammar():
    with pytest.raises(ValueError, match=r"family\.y_first are settings of JSON answers"):
        CustomFamily(frame=1, wording=Wording(one="{categories}"), grammar=ItemGrammar(), y_first=True)
