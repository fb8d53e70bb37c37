"""Reads Pascal VOC annotations: one xml file an image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from vr1.data.box_checks import box_fault
from vr1.data.coco_table import CocoTable
from vr1.data.problems import Problems
from vr1.data.table_rows import TableRows

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class XmlError(ValueError):
    """An xml file that cannot be used; the message says why."""


def read_voc(
    path: Path, files: Sequence[Path], first_pixel: Literal[0, 1] = 0, difficult: Literal["ignore", "count"] = "ignore"
) -> tuple[CocoTable, Problems, list[str]]:
    """Read the xml files of one split.

    Args:
        path: the folder of the annotations, for messages.
        files: the xml files.
        first_pixel: number of an image's first row and column. VOC2007 and VOC2012 count from 1, and their ``xmax``
            names the last pixel inside; most tools write the format counting from 0.
        difficult: objects marked ``difficult`` are neither to be found nor to be missed (``ignore``), or are objects
            like all others (``count``).

    Returns:
        The table of the sound images, the problems of the others, and notes on what was put right.

    Source: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/devkit_doc.pdf, section 2.
    """
    problems, rows = Problems(str(path)), TableRows()
    for file in files:
        try:
            root = parse_xml(file)
            name, size = _image(root, file)
        except XmlError as error:
            problems.add("xml file that cannot be used", f"{file}: {error}")
            continue
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
        for fault, where in faults:
            problems.add(fault, where)
        # Without its faulty objects an image would teach that there is nothing to see.
        if objects or not faults:
            rows.add_image(name, size)
            for label, box, is_hard in objects:
                rows.add_object(label, box, crowd=is_hard)
    return rows.table(), problems, rows.notes()


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
        raise XmlError(f"not an xml file that can be read ({error}); fetch it again or leave it out") from error
    return builder.close()


def _refuse(*_: object) -> None:
    raise XmlError("declares a document type, which VOC files never do; take the <!DOCTYPE ...> out")


def _image(root: Element, file: Path) -> tuple[str, tuple[int, int]]:
    """File name and size; the folder that many files name is that of another machine."""
    name = (root.findtext("filename") or "").strip().replace("\\", "/").rpartition("/")[2]
    if not name:
        raise XmlError("names no image in <filename>; add it")
    try:
        size = int(float(root.findtext("size/width") or "")), int(float(root.findtext("size/height") or ""))
    except (ValueError, OverflowError):
        size = 0, 0
    if min(size) < 1:
        raise XmlError("has no width and height above 0 in <size>; add them")
    # Some tools leave the ending out, as the file names of the xml files do.
    return (name if "." in name else f"{name}.jpg"), size


def _box(item: Element, first_pixel: int) -> tuple[float, ...] | None:
    try:
        x1, y1, x2, y2 = (float(item.findtext(f"bndbox/{corner}") or "") for corner in _CORNERS)
    except ValueError:
        return None
    return x1 - first_pixel, y1 - first_pixel, x2, y2
