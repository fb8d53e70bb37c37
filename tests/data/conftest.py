"""Small annotated folders, and the real ones where they lie beside the checkout."""

import pytest
from PIL import Image


@pytest.fixture
def picture(tmp_path):
    """Writes an image of a size below the test's folder."""

    def write(name, size=(100, 80)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (90, 120, 30)).save(path)
        return path

    return write
