import pytest

from vr1.data.question_text import parse_question
from vr1.families import Qwen25VL


@pytest.mark.parametrize("categories", [("cat",), ("cat", "hot dog"), ("traffic light", "T-shirt", "a.b")])
def test_reads_the_questions_of_qwen(categories):
    assert parse_question(Qwen25VL().instruction(categories)) == (categories, False)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("<image>\nLocate the exact position of person in the picture, if you can.", ("person",)),
        ("Locate the exact position of hot dog in the picture, if possible.", ("hot dog",)),
        (
            "Can you point out man in the red hat. in the image and provide the coordinates of its location?",
            ("man in the red hat.",),
        ),
        (
            "Please provide the bounding box coordinate of the region this sentence describes: center polka.",
            ("center polka",),
        ),
        (
            "<image>Please provide the bounding box coordinates of the region this sentence describes: left one",
            ("left one",),
        ),
        ("EXAMINE the image. The category set includes cat.", ("cat",)),
        (
            "The category set includes a, b, a. The output format for each detected object is class-name-[...].",
            ("a", "b"),
        ),
        ("How many cats are there?", None),
        ("", None),
    ],
)
def test_templates(question, expected):
    parsed = parse_question(question)
    assert (None if parsed is None else parsed.categories) == expected


def test_names_with_commas_that_are_known():
    question = "The category set includes bowl, cup, small, cat, fork, knife, spoon."
    assert parse_question(question, ["cup, small", "fork, knife, spoon"]).categories == (
        "bowl",
        "cup, small",
        "cat",
        "fork, knife, spoon",
    )
    assert parse_question(question).categories[:3] == ("bowl", "cup", "small")
    assert parse_question("The category set includes cup.", ["up", "cup, small"]).categories == ("cup",)


@pytest.mark.parametrize("turned", [False, True])
def test_the_longest_of_several_known_names_counts(turned):
    names = ("cup, red", "cup, red, large", "plate")
    question = f"Locate. The category set includes {', '.join(names)}."
    assert parse_question(question, names[::-1] if turned else names).categories == names
