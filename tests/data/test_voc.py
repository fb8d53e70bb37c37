from xml.etree import ElementTree
from xml.sax.saxutils import escape

import pytest

from tests.shared_data import SHARED, needs_shared
from vr1.data import VocDataModule
from vr1.data.annotated import AnnotatedSource
from vr1.data.coco import coco_splits
from vr1.data.voc import XmlError, parse_xml

XML = """<annotation><folder>x</folder><filename>{name}</filename>
<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>{objects}</annotation>"""
OBJECT = """<object><name>{0}</name><difficult>{2}</difficult><bndbox><xmin>{1[0]}</xmin><ymin>{1[1]}</ymin>
<xmax>{1[2]}</xmax><ymax>{1[3]}</ymax></bndbox></object>"""


def xml(name, size, *objects):
    body = "".join(OBJECT.format(escape(label), box, difficult) for label, box, difficult in objects)
    return XML.format(name=escape(name), size=size, objects=body)


CAT = ("cat", [10, 20, 30, 40], 0)


@pytest.fixture
def make(tmp_path, picture):
    """VOC's own layout with two images; the annotation of the second is given."""

    def write(text, **settings):
        for name in ("a.jpg", "b.jpg"):
            picture(f"JPEGImages/{name}")
        for folder in ("Annotations", "ImageSets/Main"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "ImageSets/Main/train.txt").write_text("a\nb  1\n")
        (tmp_path / "Annotations/a.xml").write_text(xml("a.jpg", (100, 80), CAT))
        (tmp_path / "Annotations/b.xml").write_text(text)
        return VocDataModule(tmp_path, **settings).build("train")

    return write


@needs_shared
@pytest.mark.parametrize("name", ["raccoon", "bccd"])
def test_real_data_as_its_coco_json_reads(name, tmp_path):
    """The real sets came as xml files; written back from their COCO json, they read as that does."""
    splits = coco_splits(SHARED / name)
    annotations, images, portion = splits["valid" if name == "raccoon" else "train"]
    reference = AnnotatedSource(annotations, images, portion, bad_records="skip")
    (tmp_path / "valid").mkdir()
    for row in range(len(reference)):
        table = reference.table
        file, rows = table.file_names[row], table.objects_of(row)
        (tmp_path / "valid" / file).symlink_to(images / file)
        objects = [
            (reference.categories[category], box.tolist(), 0)
            for box, category in zip(table.boxes_xyxy[rows], table.category_rows[rows], strict=True)
        ]
        text = xml(file, table.sizes[row], *objects)
        (tmp_path / "valid" / file).with_suffix(".xml").write_text(text)
    source = VocDataModule(tmp_path).build("val")
    assert len(source) == len(reference)
    expected = {record.origin.split(": ")[-1]: record for record in reference}
    for record in source:
        other = expected[record.origin.split(": ")[-1]]
        assert record.boxes_xyxy.tolist() == other.boxes_xyxy.tolist()
        assert (record.labels, record.image.size) == (other.labels, other.image.size)


def test_pixels_counted_from_1_and_difficult_objects(make):
    text = xml("C:\\shots\\b.jpg", (100, 80), ("dog & co", [1, 1, 100, 80], 1), CAT)
    record = make(text)[1]
    assert record.labels == ("dog & co", "cat")
    assert record.crowd.tolist() == [True, False]
    assert record.boxes_xyxy.tolist() == [[1, 1, 100, 80], [10, 20, 30, 40]]
    record = make(text, first_pixel=1, difficult="count")[1]
    assert record.boxes_xyxy.tolist() == [[0, 0, 100, 80], [9, 19, 30, 40]]
    assert record.crowd.tolist() == [False, False]


def test_other_layouts(tmp_path, picture):
    for number in range(20):
        picture(f"images/{number}.jpg")
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / f"annotations/{number}.xml").write_text(xml(f"{number}", (100, 80), CAT))
    parts = {
        split: {record.origin for record in VocDataModule(tmp_path).build(split)} for split in ("train", "val", "test")
    }
    assert {split: len(part) for split, part in parts.items()} == {"train": 16, "val": 2, "test": 2}
    assert len({origin.split(": ")[-1] for part in parts.values() for origin in part}) == 20
    (tmp_path / "test").mkdir()
    (tmp_path / "test/0.xml").write_text(xml("0.jpg", (100, 80), CAT))
    with pytest.raises(ValueError, match="there is no valid split with images, only"):
        VocDataModule(tmp_path).build("val")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", "not an xml file that can be read"),
        ("", "not an xml file that can be read"),
        ('<?xml version="1.0" encoding="gb2312"?><annotation/>', "multi-byte encodings are not supported"),
        ('<?xml version="1.0" encoding="none"?><annotation/>', "unknown encoding"),
        ("no xml", "not an xml file that can be read"),
        ("<annotation/>", "names no image in <filename>"),
        ("<annotation><filename>b.jpg</filename></annotation>", "no width and height above 0"),
        (xml("b.jpg", (0, 80)), "no width and height above 0"),
        (xml("b.jpg", ("wide", 80)), "no width and height above 0"),
        (xml("b.jpg", (100, 80), ("", [1, 2, 3, 4], 0)), "object without a name"),
        (xml("b.jpg", (100, 80), ("cat", [1, 2, "x", 4], 0)), "object without a box of four numbers"),
        (xml("b.jpg", (100, 80), ("cat", [9, 2, 3, 4], 0)), "box of negative size"),
        (xml("b.jpg", (100, 80), ("cat", [3, 2, 3, 4], 0)), "box of zero size"),
        (xml("b.jpg", (100, 80), ("cat", [300, 2, 310, 4], 0)), "box entirely outside"),
        (xml("b.jpg", (100, 80), ("cat", ["nan", 2, 3, 4], 0)), "box with NaN"),
        (xml("b.jpg", (90, 80), CAT), "the annotations say 90 x 80"),
        (xml("gone.jpg", (100, 80), CAT), "image file missing"),
    ],
)
def test_faulty_files(make, text, message):
    with pytest.raises(ValueError, match=message):
        make(text)
    source = make(text, bad_records="skip")
    assert [record.labels for record in source] == [("cat",)]


def test_entities_are_refused_before_they_grow(tmp_path):
    bomb = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "xxxxxxxxxx">' + "".join(
        f'<!ENTITY c{n} "{"&b;" * 10 if not n else f"&c{n - 1};" * 10}">' for n in range(12)
    )
    for text in (bomb + "]><a>&c11;</a>", '<!DOCTYPE a SYSTEM "file:///etc/hostname"><a/>'):
        for encoding in ("utf-8", "utf-16"):
            (tmp_path / "a.xml").write_bytes(text.encode(encoding))
            with pytest.raises(XmlError, match="declares a document type"):
                parse_xml(tmp_path / "a.xml")


def test_plain_files_parse_as_elementtree_does(tmp_path):
    text = xml("b &amp; c.jpg", (100, 80), CAT, ("dog", [1.5, 2, 3, 4], 1))
    (tmp_path / "a.xml").write_text(f'<?xml version="1.0" encoding="UTF-8"?>\n<!-- a note -->{text}', encoding="utf-8")
    own, expected = parse_xml(tmp_path / "a.xml"), ElementTree.parse(tmp_path / "a.xml").getroot()
    assert ElementTree.tostring(own) == ElementTree.tostring(expected)


@pytest.mark.parametrize(
    ("settings", "message"), [({"first_pixel": 2}, "first_pixel=2"), ({"difficult": "drop"}, "difficult='drop'")]
)
def test_wrong_settings(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        VocDataModule(tmp_path, **settings)


def test_folders_that_hold_none(tmp_path):
    with pytest.raises(ValueError, match=r"no annotation file \(\*\.xml\) found\. Looked for\n  Annotations/"):
        VocDataModule(tmp_path).build("train")
    with pytest.raises(ValueError, match="no such folder of a data set"):
        VocDataModule(tmp_path / "gone").build("train")
