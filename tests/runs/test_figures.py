"""Curves as pictures, asserted by their size and the colours of their lines."""

import numpy as np
from PIL import Image

from vr1.runs.figures import COLOURS, draw_curves


def rgb(colour):
    return tuple(int(colour[index : index + 2], 16) for index in (1, 3, 5))


def test_only_panels_with_data_are_drawn():
    one = draw_curves({"grpo/kl": [(1, 0.0), (2, 0.5)]})
    two = draw_curves({"grpo/kl": [(1, 0.0), (2, 0.5)], "sft/loss": [(1, 2.0), (2, 1.0)]})
    assert one.size == (700, 400)
    assert two.size == (1040, 400)
    assert draw_curves({}) is None
    assert draw_curves({"grpo/kl": [(1, float("nan"))], "other": [(1, 1.0)]}) is None


def test_lines_and_switches_are_there():
    series = {"grpo/kl": [(step, 0.1 * step) for step in range(30)]}
    plain, marked = (np.asarray(draw_curves(series, switches)) for switches in ((), [(10, "advanced")]))
    assert (plain == rgb(COLOURS[0])).all(axis=-1).sum() > 300
    assert not (plain == rgb("#495057")).all(axis=-1).any()
    assert (marked == rgb("#495057")).all(axis=-1).any(axis=1).sum() > 100


def test_picture_of_one_point_and_of_infinities(tmp_path):
    picture = draw_curves({"val/map": [(0, 0.0)], "reward/total": [(1, float("inf")), (2, 1.0)]})
    picture.save(tmp_path / "one.png")
    assert Image.open(tmp_path / "one.png").size == picture.size
