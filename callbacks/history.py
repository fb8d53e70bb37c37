"""The course of scalars over a training, bounded in size and fit for a checkpoint."""

from typing import Any


class History:
    """Series of (step, value) by name.

    A series that grows beyond twice ``max_points`` keeps every second step from then on, so that points stay evenly
    spaced however long training lasts.

    Args:
        max_points: about how many points a series keeps.

    Example:
        >>> history = History(max_points=2)
        >>> for step in range(1, 9):
        ...     history.add("loss", step, float(step))
        >>> history.series["loss"]
        [(2, 2.0), (4, 4.0), (6, 6.0), (8, 8.0)]
    """

    def __init__(self, max_points: int = 1000) -> None:
        self.max_points = max_points
        self.series: dict[str, list[tuple[int, float]]] = {}
        self._stride: dict[str, int] = {}

    def add(self, name: str, step: int, value: float) -> None:
        """Append a value, unless its step falls between the steps that are kept."""
        points = self.series.setdefault(name, [])
        stride = self._stride.setdefault(name, 1)
        if step % stride:
            return
        points.append((step, value))
        while len(points) > 2 * self.max_points:
            stride *= 2
            points[:] = [point for point in points if point[0] % stride == 0]
        self._stride[name] = stride

    def state_dict(self) -> dict[str, Any]:
        """The series in plain types."""
        series = {name: [list(point) for point in points] for name, points in self.series.items()}
        return {"series": series, "stride": dict(self._stride)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the series by saved ones."""
        self.series = {name: [(int(x), float(y)) for x, y in points] for name, points in state["series"].items()}
        self._stride = dict(state["stride"])
