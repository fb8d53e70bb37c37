"""Opens a data set of the ``datasets`` library, from the hub or from a folder, without decoding its images."""

from pathlib import Path
from typing import Any

_SPLITS = ("train", "validation", "test")


def load_table(path: str, split: str = "train", streaming: bool = False) -> Any:
    """A data set by its name on the hub, or a local one.

    Args:
        path: a folder that ``save_to_disk`` wrote, a folder or file of parquet or arrow, or a name on the hub such as
            ``JefferyZhan/Vision-R1-Data``.
        split: the split to take, where there are several.
        streaming: read it as it comes from the hub (or the disk), and keep none of it.

    Returns:
        A ``datasets.Dataset`` whose column ``image`` holds bytes or paths, read from disk row by row; for a stream a
        ``datasets.IterableDataset``.

    Raises:
        ValueError: if the library is missing, there is no such data set or split, or its files cannot be read.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{path}: needs the library `datasets` to be read; pip install 'vr1[datasets]'") from error
    place = Path(path).expanduser()
    try:
        if place.exists():
            table = _local(datasets, place, split, streaming)
        else:
            table = datasets.load_dataset(path, split=split, streaming=streaming)
    except Exception as error:  # the library raises whatever its many backends raise
        state = "cannot be read" if place.exists() else "is no local path, and cannot be loaded from the hub"
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path}: {state} ({type(error).__name__}: {reason}); check the path or the name") from error
    if isinstance((table.features or {}).get("image"), datasets.Image):
        table = table.cast_column("image", datasets.Image(decode=False))
    return table


def _local(datasets: Any, place: Path, split: str, streaming: bool) -> Any:
    if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
        table = datasets.load_from_disk(str(place))
        if isinstance(table, datasets.DatasetDict):
            if split not in table:
                raise ValueError(f"there is no split {split}, only {', '.join(table)}")
            table = table[split]
        return table.to_iterable_dataset() if streaming else table
    for kind in ("parquet", "arrow"):
        files = [place] if place.suffix == f".{kind}" else _of_split(place, kind, split)
        if files:
            names = [str(file) for file in files]
            return datasets.load_dataset(kind, data_files=names, split="train", streaming=streaming)
    raise ValueError("no parquet or arrow file is there, nor what save_to_disk writes")


def _of_split(place: Path, kind: str, split: str) -> list[Path]:
    """The files of a split, by their names (train-00000-of-00004.parquet) or that of their folder (train/0.parquet)."""
    files = sorted(place.rglob(f"*.{kind}"))

    def of(name: str) -> list[Path]:
        folders = {file: file.relative_to(place).parent.name for file in files}
        return [file for file in files if file.name.startswith(name) or folders[file] == name]

    if found := of(split):
        return found
    if others := [name for name in _SPLITS if of(name)]:
        raise ValueError(f"there is no split {split}, only {', '.join(others)}")
    return files
