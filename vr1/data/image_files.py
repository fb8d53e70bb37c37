"""Finds the files that annotations name, in spite of what exporters and file systems do to names."""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np

from vr1.data.images import image_size

# The root of a file system, a drive, an address, or a way out of the folder.
_ELSEWHERE = re.compile(r"[/\\]|[A-Za-z]:|\w+://|\.\.[/\\]")
_MOST_FOLDERS = 200
_TRIED = 200
"""How many names decide which folder holds the images of a file."""


def fold_name(name: str) -> str:
    """A name as it is compared: Unicode NFC, no case, spaces in a row as one.

    Example:
        >>> fold_name("Ka\u0308fer  ROT") == fold_name("K\u00e4fer rot")
        True
    """
    return unicodedata.normalize("NFC", " ".join(name.split())).casefold()


class FoundImages(NamedTuple):
    """The files of a list of names.

    Attributes:
        names: the name of each file relative to the folder (or absolute, where it was given so); None where there is
            none.
        respelled: the names that are spelled differently than their file, with the name of the file.
    """

    names: list[str | None]
    respelled: list[tuple[str, str | None]]

    def notes(self) -> list[str]:
        """What a reader of the data should know."""
        if not self.respelled:
            return []
        (given, file), count = self.respelled[0], len(self.respelled)
        return [f"{count} image names are spelled differently than their files, such as {given} for {file}"]


class ImageFolder:
    r"""A folder of images, each folder in it listed once.

    A name is looked for as it is; then with ``/`` for a backslash, with ``%20`` and the like decoded, in Unicode NFC
    and in any letter case. The path of another machine, or an address, is looked for by its last parts.

    Args:
        folder: the folder to which names are relative; one that does not exist has no file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Path(root, "images").mkdir()
        ...     Path(root, "images", "a b.JPG").touch()
        ...     folder = ImageFolder(Path(root))
        ...     [folder.find(name) for name in (r"images\a%20b.jpg", r"D:\photos\images\a b.JPG", "c.jpg")]
        ['images/a b.JPG', 'images/a b.JPG', None]
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listings: dict[str, dict[str, bool]] = {}
        self._folded: dict[str, dict[str, list[str]]] = {}
        self._sizes: dict[str, tuple[int, int]] = {}

    def find(self, name: str, *, anywhere: bool = True) -> str | None:
        """The file of a name.

        Args:
            name: as the annotations give it.
            anywhere: whether the path of another machine may be looked for by its last parts.

        Returns:
            Its name relative to the folder, or as given where that is absolute; None where there is none.
        """
        parent, leaf = os.path.split(os.path.join(self.folder, name))
        if self._listing(parent).get(leaf) is False:
            return name
        spellings = list(_spellings(name))
        for parts in spellings:
            if (found := self._walk(parts)) is not None:
                return found
        for parts in spellings if anywhere and _ELSEWHERE.match(name) else []:
            for start in range(1, len(parts)):
                if (found := self._walk(parts[start:])) is not None:
                    return found
        return None

    def find_all(self, names: Sequence[str]) -> FoundImages:
        """The files of names. Two different names never share a file that neither of them names in full."""
        found = [self.find(name) for name in names]
        # By file: the names that lead to it, and whether by its last parts.
        leading: dict[str, set[str]] = {}
        for name, file in zip(names, found, strict=True):
            if file is not None:
                leading.setdefault(file, set()).add(_comparable(name))
        for row, (name, file) in enumerate(zip(names, found, strict=True)):
            if file is not None and len(leading[file]) > 1 and _comparable(name) != _comparable(file):
                found[row] = None
        pairs = zip(names, found, strict=True)
        return FoundImages(found, [(name, file) for name, file in pairs if file not in (None, name)])

    def size(self, name: str) -> tuple[int, int]:
        """Width and height of an upright image, from its header; each is read once.

        Raises:
            ImageError: if there is no such file, or it is no image.
        """
        if name not in self._sizes:
            self._sizes[name] = image_size(self.folder / (self.find(name) or name))
        return self._sizes[name]

    def _walk(self, parts: Sequence[str]) -> str | None:
        """The file of a path, each part of it in any spelling."""
        if not parts or ".." in parts:
            return None
        place, found = str(self.folder), []
        for number, part in enumerate(parts, start=1):
            child = self._child(place, part, is_folder=number < len(parts))
            if child is None:
                return None
            found.append(child)
            place = os.path.join(place, child)
        return "/".join(found)

    def _child(self, folder: str, name: str, *, is_folder: bool) -> str | None:
        listing = self._listing(folder)
        if listing.get(name) is is_folder:
            return name
        if folder not in self._folded:
            entries: dict[str, list[str]] = {}
            for entry in listing:
                entries.setdefault(fold_name(entry), []).append(entry)
            self._folded[folder] = entries
        same = [entry for entry in self._folded[folder].get(fold_name(name), []) if listing[entry] is is_folder]
        return same[0] if len(same) == 1 else None

    def _listing(self, folder: str) -> dict[str, bool]:
        """By name of an entry, whether it is a folder."""
        if folder not in self._listings:
            listing = {}
            if os.path.isdir(folder):
                with os.scandir(folder) as entries:
                    listing = {entry.name: entry.is_dir() for entry in entries}
            self._listings[folder] = listing
        return self._listings[folder]


def choose_folder(candidates: Iterable[Path], names: Sequence[str], root: Path | None = None) -> Path:
    """The folder in which most of the names exist; of equal ones the first, which is also taken without any.

    Args:
        candidates: at least one folder, the likeliest first; those that do not exist are passed over.
        names: names of images, of which a few hundred are tried.
        root: where no candidate has all of the names, the folders below it are candidates too.
    """
    places = [place for place in dict.fromkeys(candidates) if place.is_dir()] or list(candidates)
    spread = np.linspace(0, len(names) - 1, min(_TRIED, len(names))).round().astype(int)
    tried = [names[row] for row in spread]
    best, most = places[0], (0, 0)
    below = _folders_below(root) if root is not None else iter(())
    for place in chain(places, islice(below, _MOST_FOLDERS)):
        if most[1] == len(tried):
            break
        folder = ImageFolder(place)
        # In which the names exist in full, before one in which only their ends do.
        whole = sum(folder.find(name, anywhere=False) is not None for name in tried)
        hits = whole, whole if whole == len(tried) else sum(folder.find(name) is not None for name in tried)
        if hits > most:
            best, most = place, hits
    return best


def _folders_below(root: Path, depth: int = 3) -> Iterator[Path]:
    """The folders in a folder, and those in them, sorted by name; hidden ones are passed over."""
    with os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    for name in names:
        yield root / name
    for name in names if depth > 1 else ():
        yield from _folders_below(root / name, depth - 1)


def _spellings(name: str) -> Iterator[list[str]]:
    """The parts of a path as it is written, with backslashes as separators, and decoded."""
    # Label Studio serves files as /data/local-files/?d=images/a.jpg.
    plain = name.rpartition("?d=")[2]
    texts = dict.fromkeys([plain, plain.replace("\\", "/"), unquote(plain), unquote(plain).replace("\\", "/")])
    for text in texts:
        yield [part for part in text.split("/") if part not in ("", ".")]


def _comparable(name: str) -> str:
    """A whole path, in which spelling makes no difference."""
    *_, parts = _spellings(name)
    return fold_name("/".join(parts))
