"""The report of a run: complete, self-contained and small."""

import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from tests.runs.folders import add_classes, make_run
from vr1.commands.report import main
from vr1.errors import UserError
from vr1.runs import read_run
from vr1.runs.report import build_page, write_report


class Page(HTMLParser):
    """Collects the addresses, headings and texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.open, self.text, self.headings = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "link", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def content(page):
    """The data that the page's script reads."""
    return json.loads(re.search(r'id="content">(.*?)</script>', page, re.DOTALL)[1])


@pytest.fixture
def page(tmp_path):
    folder = make_run(tmp_path / "run")
    facts = {"command": "python -m vr1 fit", "seed": 3, "versions": {"torch": "9.9"}, "git": None}
    (folder / "run.json").write_text(json.dumps(facts))
    split = {"records": 1234, "sampled": 8, "boxes": 2.5, "width": [90, 120], "height": [80, 80], "labels": {"cat": 5}}
    (folder / "data.json").write_text(json.dumps({"name": "My", "splits": {"train": split}}))
    return write_report(folder).read_text()


def test_every_part_is_there(page):
    parsed = Page(page)
    assert not parsed.open, "every element is closed"
    expected = ["Before and after", "Gallery", "Curves", "Stages", "Data", "How to repeat it", "Settings"]
    assert parsed.headings == expected
    text = " ".join(parsed.text)
    for shown in (
        "+0.200",
        "a <note>",
        "<b>tight</b>",
        "1,234",
        "cat (5)",
        "python -m vr1 fit",
        "9.9",
        "max_steps: 4",
    ):
        assert shown in text


def test_no_request_leaves_the_page(page):
    assert all(address.startswith("data:") for address in Page(page).addresses)
    assert "default-src 'none'" in page
    outside = set(re.findall(r"https?://[^\s\"'<)]+", page)) - {"http://www.w3.org/2000/svg"}
    assert not outside


def test_numbers_and_pictures_are_inside(page):
    found = content(page)
    assert [panel["title"] for panel in found["panels"]] == ["Reward (training)", "Detection (validation)"]
    assert found["panels"][1]["lines"] == [{"name": "val/map", "points": [[0, 0.1], [4, 0.3]]}]
    assert found["switches"] == [[3, "<b>tight</b>"]]
    assert [gallery["step"] for gallery in found["galleries"]] == [0, 2, 4]


def test_text_of_a_run_cannot_end_the_script(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "config.yaml").write_text("a: </script><script>alert(1)</script>\n")
    (folder / "curves.json").write_text(
        json.dumps({"series": {"my/</script>": [[1, 1.0]]}, "switches": [[1, "</script>@SCRIPT@"]]})
    )
    page = build_page(read_run(folder))
    assert not Page(page).open
    assert page.count("<script") == 2
    assert content(page)["switches"] == [[1, "</script>@SCRIPT@"]]


def test_a_long_run_stays_small(tmp_path):
    folder = make_run(tmp_path / "run", galleries=60, size=(700, 400))
    series = {f"my/{name}": [[step, step / 7] for step in range(30_000)] for name in range(10)}
    (folder / "curves.json").write_text(json.dumps({"series": series, "switches": []}))
    page = write_report(folder)
    assert page.stat().st_size < 5_000_000
    steps = [gallery["step"] for gallery in content(page.read_text())["galleries"]]
    assert (steps[0], steps[-1]) == (0, 118)
    assert len(steps) >= 5


def test_an_almost_empty_run(tmp_path):
    (tmp_path / "metrics.csv").write_text("")
    page = write_report(tmp_path).read_text()
    assert "No metric was logged" in page
    assert not Page(page).open


def test_a_run_with_a_single_gallery_has_no_slider(tmp_path):
    page = write_report(make_run(tmp_path / "run", galleries=1)).read_text()
    assert 'type="range"' not in page
    assert len(content(page)["galleries"]) == 1


def test_the_command_names_what_it_wrote(tmp_path, capsys):
    folder = make_run(tmp_path / "version_0")
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "no such run folder" in capsys.readouterr().err


def test_a_damaged_picture_is_named(tmp_path):
    folder = make_run(tmp_path / "run", galleries=1)
    (folder / "gallery" / "step_000000.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"step_000000.png: cannot be read as a picture"):
        write_report(folder)
    assert [path.name for path in folder.glob("*report*")] == []
    Image.new("RGB", (4, 4)).save(folder / "gallery" / "step_000000.png")
    assert write_report(folder).is_file()


def test_classes_of_the_training_and_of_an_evaluation(tmp_path):
    folder = make_run(tmp_path / "run")
    add_classes(folder, {"cat": (0.25, 0.5, 3), "<dog>": (0.25, 0.125, 2)})
    (folder / "evaluation").mkdir()
    rows = ["set,category,map,map_50,ar_100,objects", "city,cat,0.3333,0.5,0.25,3.0", "sea,cat,-1.0,-1.0,-1.0,0.0"]
    (folder / "evaluation" / "per_class.csv").write_text("\n".join(rows))
    text = " ".join(Page(write_report(folder).read_text()).text)
    assert "cat 3 0.250 0.500 +0.250 <dog> 2 0.250 0.125 -0.125" in text
    assert "city/cat 3 0.333 0.500 0.250 sea/cat 0 - - -" in text
    damaged = json.loads((folder / "before_after.json").read_text()) | {"classes": {"first": [1]}}
    (folder / "before_after.json").write_text(json.dumps(damaged))
    with pytest.raises(UserError, match=r"before_after.json: contains no comparison"):
        write_report(folder)
