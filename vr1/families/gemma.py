"""Gemma: a JSON list of boxes, y before x, both axes from 0 to 1000."""

from vr1.families.base import Family, Wording


class Gemma(Family):
    r"""Gemma 3 and Gemma 4: the JSON answers of Gemini.

    The order of the axes is not that of Qwen: read by another family, boxes are mirrored at the diagonal.

    Google documents the form for Gemini and names object detection among the tasks of Gemma 4. Of Gemma 3 it says that
    no training on boxes is documented, and that Gemini's form is the likely one: expect to warm it up.

    Source: Google's documentation of Gemini, bounding box detection (``box_2d`` as ``[y_min, x_min, y_max, x_max]`` in
        0..1000) and image understanding (the question about all objects); of Gemma, vision understanding (object
        detection with Gemma 4); Google's answer about boxes in the discussions of google/gemma-3-4b-it. The questions
        about categories and expressions are ours, after Gemini's.

    Example:
        >>> from vr1.types import as_boxes
        >>> family = Gemma()
        >>> family.write(as_boxes([[10, 20, 30, 40]]), ["cat"])
        '```json\n[\n\t{"box_2d": [20, 10, 40, 30], "label": "cat"}\n]\n```'
        >>> family.read('[{"box_2d": [20, 10, 40, 30], "label": "cat"}]').boxes.tolist()
        [[10.0, 20.0, 30.0, 40.0]]
    """

    model_types = ("gemma3", "gemma4")
    frame = 1000.0
    box_key = "box_2d"
    y_first = True
    wording = Wording(
        one="Detect every {categories} in the image. Output a JSON list in which each entry has the 2D bounding box in"
        ' the key "box_2d" and the text label in the key "label".',
        several="Detect all objects of these categories in the image: {categories}. Output a JSON list in which each"
        ' entry has the 2D bounding box in the key "box_2d" and the text label in the key "label".',
        referring="Detect {categories} in the image. Output a JSON list in which each entry has the 2D bounding box in"
        ' the key "box_2d" and the text label in the key "label".',
    )
