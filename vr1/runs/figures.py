"""What the pictures of runs have in common."""

import io

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

COLOURS = ("#1971c2", "#d9480f", "#2b8a3e", "#9c36b5", "#0c8599", "#e67700", "#c2255c", "#5c7cfa")


def over_steps(axes: Axes, title: str) -> None:
    """Make axes those of a metric over the optimizer steps."""
    axes.set_title(title, fontsize=11, loc="left", fontweight="bold")
    axes.set_xlabel("optimizer step", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def picture_of(figure: Figure) -> Image.Image:
    """A figure as RGB, drawn without a screen whatever matplotlib is set to.

    Example:
        >>> picture_of(Figure(figsize=(3, 2), dpi=100)).size
        (300, 200)
    """
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    with Image.open(buffer) as picture:
        return picture.convert("RGB")
