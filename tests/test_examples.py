"""The examples do what they say."""

import csv
import runpy
from pathlib import Path

from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_python_api(tiny_model, tmp_path, capsys):
    example = runpy.run_path(str(EXAMPLES / "python_api.py"))
    picture = example["train"](steps=1, out=tmp_path, scenes=2, model=str(tiny_model))
    assert min(Image.open(picture).size) > 300
    assert "few_boxes" in capsys.readouterr().out, "the rewards of a prediction are printed"
    run = tmp_path / "version_0"
    with (run / "metrics.csv").open() as file:
        logged = {name for row in csv.DictReader(file) for name, value in row.items() if value}
    assert {"reward/few_boxes", "reward/total", "val/map"} <= logged
    assert "| val/map |" in (run / "before_after.md").read_text()
    assert (run / "curves.png").is_file()
