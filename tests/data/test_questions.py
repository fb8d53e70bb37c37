import pytest

from vr1.data.questions import asked_for
from vr1.families import Qwen25VL


@pytest.mark.parametrize("categories", [("cat",), ("cat", "hot dog"), ("traffic light", "T-shirt", "a.b")])
def test_reads_what_qwen_is_asked(categories):
    assert asked_for(Qwen25VL().instruction(categories)) == categories


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
def test_wordings(question, expected):
    assert asked_for(question) == expected


def test_names_with_commas_that_are_known():
    question = "The category set includes bowl, cup, small, cat, fork, knife, spoon."
    assert asked_for(question, ["cup, small", "fork, knife, spoon"]) == (
        "bowl",
        "cup, small",
        "cat",
        "fork, knife, spoon",
    )
    assert asked_for(question)[:3] == ("bowl", "cup", "small")
    assert asked_for("The category set includes cup.", ["up", "cup, small"]) == ("cup",)
