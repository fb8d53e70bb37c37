"""A file of JSON lines that several processes write together."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch.callbacks import Callback


class SharedLines:
    """Each process writes a part of its own; at the end the first one, whose part is the file, adds the others to it.

    Args:
        callback: whose file it is, to be named where its folder cannot be written to.
        path: the file; its folder, which all processes must see, is made if it is missing.
        rank: number of this process.

    Raises:
        ValueError: if the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     both = [SharedLines(Callback(), Path(folder, "answers.jsonl"), rank) for rank in (0, 1)]
        ...     for rank, lines in enumerate(both):
        ...         lines.open()
        ...         lines.write({"rank": rank})
        ...         lines.close()
        ...     both[0].merge(world=2)
        ...     both[0].path.read_text().splitlines()
        ['{"rank": 0}', '{"rank": 1}']
    """

    def __init__(self, callback: Callback, path: Path, rank: int) -> None:
        self.path, self._part = path, _part(path, rank)
        self._file: TextIO | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._part.open("a").close()
        except OSError as error:
            raise ValueError(
                f"{type(callback).__name__}: output_dir is {str(path.parent)!r}, which cannot be written to"
                f" ({error.strerror}): give a folder of your own"
            ) from error

    def open(self, *, anew: bool = False) -> None:
        """Begin to write, behind what this process's part holds or in its place."""
        self._file = self._part.open("w" if anew else "a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a line, which is in the file when this returns."""
        assert self._file is not None
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """End writing; of no effect where it is ended."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def merge(self, world: int) -> None:
        """Add the parts of all processes to the file and remove them; on the first one, when all have closed theirs."""
        with self.path.open("a", encoding="utf-8") as merged:
            for rank in range(1, world):
                part = _part(self.path, rank)
                merged.write(part.read_text(encoding="utf-8"))
                part.unlink()


def _part(path: Path, rank: int) -> Path:
    return path if rank == 0 else path.with_name(f"{path.stem}.rank{rank}{path.suffix}")
