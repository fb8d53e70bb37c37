"""Pictures of predictions: boxes on an image, captioned tiles, and sheets of tiles."""

from vr1.drawing.boxes import draw_prediction
from vr1.drawing.sheet import draw_grid, draw_tile

__all__ = ["draw_grid", "draw_prediction", "draw_tile"]
