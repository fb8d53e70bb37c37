"""Small annotated folders."""

import copy
import json

import pytest
from PIL import Image

from tests.data.coco_document import DOCUMENT
from vr1.data.annotated import AnnotatedSource
from vr1.data.questions import Questions


@pytest.fixture
def picture(tmp_path):
    """Writes an image of a size below the test's folder."""

    def write(name, size=(100, 80)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (90, 120, 30)).save(path)
        return path

    return write


@pytest.fixture
def document():
    return copy.deepcopy(DOCUMENT)


@pytest.fixture
def make(tmp_path):
    """Writes a document and its images, and opens the source."""

    def _make(document, questions=None, images=True, **settings) -> AnnotatedSource:
        for image in document["images"] if images else []:
            if isinstance(image, dict) and "file_name" in image:
                (tmp_path / image["file_name"]).parent.mkdir(exist_ok=True)
                Image.new("RGB", (image.get("width", 4), image.get("height", 4))).save(tmp_path / image["file_name"])
        (tmp_path / "train.json").write_text(json.dumps(document))
        return AnnotatedSource(tmp_path / "train.json", tmp_path, None, Questions(**(questions or {})), **settings)

    return _make
