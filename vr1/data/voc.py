"""Pascal VOC annotations, one xml file an image: reader, splits and data module."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from vr1.data.annotated import AnnotatedDataModule, Reader
from vr1.data.annotations import AnnotationTable, TableBuilder, box_fault
from vr1.data.datamodule import MissingSplitError, Source, Split
from vr1.data.image_files import choose_folder
from vr1.data.splits import FOLDER_SPLITS, SHARES, SPLIT_NAMES, Portion
from vr1.data.validation import LostObjects, Problems
from vr1.errors import UserError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class XmlError(UserError):
    """An xml file that cannot be used; the message gives the reason."""


def read_voc(
    path: Path, files: Sequence[Path], first_pixel: Literal[0, 1] = 0, difficult: Literal["ignore", "count"] = "ignore"
) -> tuple[AnnotationTable, Problems, list[str]]:
    """Read the xml files of one split.

    Args:
        path: the folder of the annotations, for messages.
        files: the xml files.
        first_pixel: number of an image's first row and column. VOC2007 and VOC2012 count from 1, and their ``xmax``
            names the last pixel inside; most tools write the format counting from 0.
        difficult: objects marked ``difficult`` count neither as targets nor as errors (``ignore``), or are objects like
            all others (``count``).

    Returns:
        The table of the valid images, the problems of the others, and notes on what was changed.

    Source: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/devkit_doc.pdf, section 2.
    """
    problems, builder, lost = Problems(str(path)), TableBuilder(), LostObjects()
    images: dict[str, list[tuple[Path, Element, tuple[int, int]]]] = {}
    for file in files:
        try:
            root = parse_xml(file)
            name, size = _image(root, file)
        except XmlError as error:
            problems.add("xml file that cannot be used", f"{file}: {error}")
            continue
        images.setdefault(name, []).append((file, root, size))
    for name, annotations in images.items():
        if len(annotations) > 1:
            # Copied files name the image that they were copied from, so whose objects they hold is not known.
            problems.add(
                "image that several xml files name", f"{name}: {', '.join(str(a[0]) for a in annotations)}", name
            )
            continue
        [(file, root, size)] = annotations
        objects, faults = _objects(root, file, size, first_pixel, difficult)
        for fault, where in faults:
            problems.add(fault, where, name)
        if faults:
            lost.add(name, len(objects))
            continue
        builder.add_image(name, size)
        for label, box, is_hard in objects:
            builder.add_object(label, box, crowd=is_hard)
    return builder.table(), problems, builder.notes() + lost.notes()


def _objects(
    root: Element, file: Path, size: tuple[int, int], first_pixel: int, difficult: str
) -> tuple[list[tuple[str, tuple[float, ...], bool]], list[tuple[str, str]]]:
    """Label, box and difficulty of the objects of a file, and the faults of the others with their place."""
    objects, faults = [], []
    for number, item in enumerate(root.iter("object")):
        label = (item.findtext("name") or "").strip()
        box = _box(item, first_pixel)
        where = f"{file}: object {number} ({label or 'no name'})"
        fault = "object without a name" if not label else "object without a box of four numbers"
        if label and box is not None:
            fault = box_fault(box, size) or ""
        if fault or box is None:
            faults.append((fault, where))
        else:
            is_hard = difficult == "ignore" and (item.findtext("difficult") or "").strip() == "1"
            objects.append((label, box, is_hard))
    return objects, faults


def parse_xml(path: Path) -> Element:
    """The root of an xml file. A file that declares a document type is refused, since entities can blow up memory.

    Raises:
        XmlError: if the file is missing, not xml, or declares a document type.
    """
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _refuse
    try:
        parser.Parse(path.read_bytes(), True)
    except XmlError:
        raise
    except (expat.ExpatError, OSError, ValueError, LookupError) as error:  # the last two: encodings that expat lacks
        raise XmlError(f"not an xml file that can be read ({error}); download it again or leave it out") from error
    return builder.close()


def _refuse(*_: object) -> None:
    raise XmlError("declares a document type, which VOC files never do; remove the <!DOCTYPE ...>")


def _image(root: Element, file: Path) -> tuple[str, tuple[int, int]]:
    """File name and size; the folder that many files name is one of another machine."""
    name = (root.findtext("filename") or "").strip().replace("\\", "/").rpartition("/")[2]
    if not name:
        raise XmlError("names no image in <filename>; add it")
    try:
        size = int(float(root.findtext("size/width") or "")), int(float(root.findtext("size/height") or ""))
    except (ValueError, OverflowError):
        size = 0, 0
    if min(size) < 1:
        raise XmlError("has no width and height above 0 in <size>; add them")
    # Some tools omit the suffix.
    return (name if "." in name else f"{name}.jpg"), size


def _box(item: Element, first_pixel: int) -> tuple[float, ...] | None:
    try:
        x1, y1, x2, y2 = (float(item.findtext(f"bndbox/{corner}") or "") for corner in _CORNERS)
    except ValueError:
        return None
    return x1 - first_pixel, y1 - first_pixel, x2, y2


_LOOKED_FOR = """\
  Annotations/*.xml with the images in JPEGImages/ and lists ImageSets/Main/train.txt, val.txt, test.txt (VOC);
  train/*.xml with the images in the same folder, likewise valid/ and test/ (Roboflow);
  annotations/*.xml with the images in images/, or xml files and images in one folder (split by image)"""


_TRIED = 20
"""How many xml files decide which folder holds the images."""


class VocSplit(NamedTuple):
    """The xml files of one split, and the folder of their images."""

    files: list[Path]
    images: Path


def voc_splits(root: Path) -> dict[str, VocSplit]:
    """The splits of a folder: those it has, or 80 % ``train``, 10 % ``valid`` and 10 % ``test`` of its images.

    Args:
        root: the folder of the data set.

    Returns:
        The splits by name: some of ``train``, ``valid`` and ``test``.

    Raises:
        UserError: if there is no such folder, or no xml file in it.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of a data set; check the path")
    lists = root / "ImageSets" / "Main"
    if lists.is_dir() and (root / "Annotations").is_dir():
        splits = {}
        for name, split in SPLIT_NAMES.items():
            if (file := lists / f"{name}.txt").is_file():
                # A list of one category has a second column: 1 where the image shows it.
                names = [line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
                files = [root / "Annotations" / f"{name}.xml" for name in dict.fromkeys(names)]
                splits[split] = VocSplit(files, _images(root, files, root / "JPEGImages"))
        if splits:
            return splits
    folders = {split: root / name for name, split in SPLIT_NAMES.items() if any((root / name).glob("*.xml"))}
    if folders:
        found = {split: sorted(folder.glob("*.xml")) for split, folder in folders.items()}
        return {split: VocSplit(found[split], _images(root, found[split], folder)) for split, folder in folders.items()}
    for annotations, images in (("Annotations", "JPEGImages"), ("annotations", "images"), ("", "")):
        if files := sorted((root / annotations).glob("*.xml")):
            return _divided(files, _images(root, files, root / images))
    raise UserError(f"{root}: no annotation file (*.xml) found. Looked for\n{_LOOKED_FOR}")


def _images(root: Path, files: Sequence[Path], likely: Path) -> Path:
    """The folder of the images of xml files."""
    names = []
    for file in files[:_TRIED]:
        try:
            names.append(_image(parse_xml(file), file)[0])
        except XmlError:
            continue
    places = [likely, root / "JPEGImages", root / "images", root, *(file.parent for file in files[:1])]
    return choose_folder(places, names, root)


def _divided(files: list[Path], images: Path) -> dict[str, VocSplit]:
    chosen = {split: Portion(*share).of(file.stem for file in files) for split, share in SHARES.items()}
    return {split: VocSplit([file for file in files if file.stem in names], images) for split, names in chosen.items()}


class VocDataModule(AnnotatedDataModule):
    """Images with Pascal VOC xml files: VOC's own layout, Roboflow's, or one folder that is divided by image.

    Args:
        root: the folder; see `voc_splits` for the layouts that are understood.
        first_pixel: 1 for VOC2007 and VOC2012, which count pixels from 1; 0 for files of most tools.
        difficult: objects marked difficult count neither as targets nor as errors (``ignore``), or as any other object
            (``count``).
        settings: questions, faulty records, selection and loading; see `AnnotatedDataModule` and `RecordDataModule`.
    """

    def __init__(
        self,
        root: Path,
        first_pixel: Literal[0, 1] = 0,
        difficult: Literal["ignore", "count"] = "ignore",
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if first_pixel not in (0, 1):
            raise UserError(f"data.first_pixel={first_pixel} must be 0 or 1")
        if difficult not in ("ignore", "count"):
            raise UserError(f"data.difficult={difficult!r} must be 'ignore' or 'count'")
        self.root, self.first_pixel, self.difficult = Path(root), first_pixel, difficult

    def read(self, split: Split) -> Source:
        """The records of one split; ``predict`` takes the test records.

        Raises:
            MissingSplitError: the folder has no such split.
            UserError: its annotations or images are faulty.
        """
        splits = voc_splits(self.root)
        name = FOLDER_SPLITS[split]
        if name not in splits or not splits[name].files:
            raise MissingSplitError(
                f"{self.root}: there is no {name} split with images, only {', '.join(splits)}; add one"
            )
        source = partial(self.open, self.root, splits[name].images, read=self._reader(splits[name]))
        if name == "train":
            return self.train_on(source())
        asked = self.asked_in_training(self.root, self._reader(splits["train"])) if "train" in splits else None
        return source(training_categories=asked)

    def _reader(self, files: VocSplit) -> Reader:
        return partial(read_voc, files=files.files, first_pixel=self.first_pixel, difficult=self.difficult)
