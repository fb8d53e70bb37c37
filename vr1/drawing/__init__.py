"""Pictures of findings: boxes on an image, captioned tiles, and sheets of tiles."""

from vr1.drawing.boxes import draw_finding
from vr1.drawing.sheet import draw_grid, draw_tile

__all__ = ["draw_finding", "draw_grid", "draw_tile"]
