"""The report in a browser: wide and narrow, light and dark."""

import re
from pathlib import Path

import pytest

from tests.runs.folders import add_classes, make_run
from tests.runs.report.browser import PROGRAM, Browser
from vr1.runs import report
from vr1.runs.report import write_report
from vr1.runs.tables import figure_text

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium or Chrome on the path")
SCRIPT = Path(report.__file__).parent / "script.js"
SCREENS = [(width, dark) for width in (1280, 390) for dark in (False, True)]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    running = Browser(tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    return write_report(make_run(tmp_path_factory.mktemp("runs") / "version_0")).as_uri()


@pytest.mark.parametrize(("width", "dark"), SCREENS)
def test_no_error_no_request_and_no_sideways_scrolling(width, dark, browser, address):
    browser.open(address, width=width, dark=dark)
    assert browser.problems == []
    requests = [request for request in browser.requests if not request.startswith("data:")]
    assert requests == [address]
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("document.querySelectorAll('.chart path').length") == 2


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_is_readable(dark, browser, address):
    browser.open(address, width=1280, dark=dark)
    for place in ("body", "h1", "header p", ".note", "th", "td", "summary", "pre", ".chart h3", ".keys span"):
        colour = browser.run(f"getComputedStyle(document.querySelector('{place}')).color")
        assert contrast(colour, browser.run("getComputedStyle(document.body).backgroundColor")) >= 4.5, place
    assert luminance(browser.run("getComputedStyle(document.body).color")) > 0.5 or not dark


def test_the_slider_goes_through_the_training(browser, address):
    browser.open(address, width=390)
    shown = "[document.getElementById('gallery-step').textContent, document.getElementById('gallery-picture').src]"
    browser.run("document.getElementById('gallery-slider').focus()")
    seen = [browser.run(shown)]
    for key in ("ArrowLeft", "Home", "End"):
        browser.press(key)
        seen.append(browser.run(shown))
    assert [step for step, _ in seen] == ["step 4", "step 2", "before training", "step 4"]
    assert len({picture for _, picture in seen}) == 3
    assert browser.run("document.getElementById('gallery-picture').naturalWidth") > 100


@pytest.mark.parametrize(("width", "dark"), SCREENS)
def test_eighty_classes_are_sorted_by_their_headings(width, dark, browser, tmp_path):
    folder = make_run(tmp_path / "run")
    names = ["a name of several long words in a row", *(f"class {number}" for number in range(79))]
    # The change falls from the first class to the last, where the numbers of boxes have no order.
    classes = {name: (0.25, 0.5 - index / 160, 1 + index * 37 % 80) for index, name in enumerate(names)}
    add_classes(folder, classes | {"nothing": (-1, -1, 0)})
    browser.open(write_report(folder).as_uri(), width=width, dark=dark)
    assert browser.problems == []
    assert browser.run("document.documentElement.scrollWidth") <= width
    column = "[...document.querySelectorAll('#classes tbody tr')].map((row) => row.cells[{}].textContent)"
    press = "document.querySelectorAll('#classes th button')[{}].click()"
    changes = browser.run(column.format(4))
    assert changes[0] == "+0.250"
    assert changes[-2:] == ["-0.244", "-"]
    numbers = [float(text) for text in changes[:-1]]
    assert numbers == sorted(numbers, reverse=True)
    browser.run(press.format(4))
    assert browser.run(column.format(4)) == [*reversed(changes[:-1]), "-"]
    browser.run(press.format(1))
    assert browser.run(column.format(1)) == [str(number) for number in range(80, -1, -1)]
    browser.run(press.format(0))
    assert browser.run(column.format(0))[:4] == [names[0], "class 0", "class 1", "class 2"]
    assert browser.run("document.querySelectorAll('#classes [aria-sort]').length") == 1
    for place in ("#classes .gain", "#classes .loss", "#classes [aria-sort] button"):
        colour = browser.run(f"getComputedStyle(document.querySelector('{place}')).color")
        assert contrast(colour, browser.run("getComputedStyle(document.body).backgroundColor")) >= 4.5, place
    assert browser.run("document.querySelector('.sortable').getBoundingClientRect().height") <= 600


def test_one_class_is_one_row(browser, tmp_path):
    folder = make_run(tmp_path / "run")
    add_classes(folder, {"raccoon": (0.0, 0.5, 46)})
    browser.open(write_report(folder).as_uri(), width=390)
    assert browser.run("document.querySelector('#classes tbody').innerText").split() == [
        "raccoon",
        "46",
        "0.000",
        "0.500",
        "+0.500",
    ]
    assert browser.run("document.querySelectorAll('#classes button').length") == 0


def test_a_curve_shows_its_value_at_the_pointer(browser, address):
    browser.open(address, width=1280)
    text = "document.querySelector('.chart .keys').textContent"
    assert browser.run(text) == "total 1.000"
    browser.run("document.querySelector('.chart').scrollIntoView()")
    box = browser.run(
        "(({x, y, width, height}) => [x, y, width, height])(document.querySelector('.chart svg')"
        ".getBoundingClientRect())"
    )
    browser.send("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + box[2] * 0.55, y=box[1] + box[3] / 2)
    assert browser.run(text) == "total 0.500 @ 2"


def test_figures_have_the_digits_of_the_tables(browser, address):
    """The page's own function, taken out of its script."""
    browser.open(address, width=1280)
    [function] = re.findall(r"^  function figure\(value\) \{\n.*?^  \}$", SCRIPT.read_text(), re.MULTILINE | re.DOTALL)
    values = [0.0, 0.25, -3.14159, 12.3456, 123456.7, 0.0005, 0.00049, -0.000123, 0.0001, 0.00000999, 1.2e-05, 3e-12]
    shown = browser.run(f"(() => {{ {function}; return {values}.map(figure); }})()")
    assert shown == [figure_text(value) for value in values]


def luminance(colour):
    """Relative luminance of ``rgb(r, g, b)``, as the Web Content Accessibility Guidelines define it."""
    shares = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    """Contrast of two colours, from 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
