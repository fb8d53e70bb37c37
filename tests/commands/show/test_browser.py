"""The page in a browser with a real model behind it: wide and narrow, light and dark."""

import threading
import time

import pytest
import uvicorn

from tests.runs.report.browser import PROGRAM, Browser
from vr1.commands.show.page import build_app
from vr1.detector import Detector

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium or Chrome on the path")


@pytest.fixture(scope="module")
def address():
    detectors = [Detector.load(device="cpu", max_new_tokens=160) for _ in range(2)]
    server = uvicorn.Server(uvicorn.Config(build_app(detectors), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    running = Browser(tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


def open_scene(browser, address, number, **screen):
    """Load the page and draw one scene, whose answer has boxes, by the button that draws any."""
    browser.open(address, **screen)
    browser.run(f"Math.random = () => {(number + 0.5) / 10_000}; document.getElementById('scene').click()")
    wait_for(browser, "document.querySelectorAll('.reward .total').length === 2")


def wait_for(browser, condition, seconds=60):
    ends = time.monotonic() + seconds
    while not browser.run(condition):
        assert time.monotonic() < ends, condition
        time.sleep(0.05)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)])
def test_a_scene_is_answered_by_both_models(browser, address, width, dark):
    open_scene(browser, address, 3, width=width, dark=dark)
    assert browser.run("document.querySelectorAll('.picture img').length") == 2
    assert browser.run("document.querySelector('.picture img').naturalWidth") > 0
    texts = browser.run("[...document.querySelectorAll('.answer')].map((item) => item.textContent)")
    assert texts[0] == texts[1]
    assert "bbox_2d" in texts[0]
    assert browser.problems == []
    assert all(request.startswith((address, "data:")) for request in browser.requests)
    assert browser.run("document.documentElement.scrollWidth") <= width


def test_a_box_drawn_with_the_mouse_is_rated(browser, address):
    open_scene(browser, address, 3, width=1000, height=1400)
    browser.run("document.getElementById('clear').click()")
    wait_for(browser, "document.querySelectorAll('.reward .total').length === 0")
    x, y, width, height = browser.run(
        "(({x, y, width, height}) => [x, y, width, height])(document.querySelector('.picture').getBoundingClientRect())"
    )
    corners = ((x + width / 4, y + height / 4), (x + width / 2, y + height / 2))
    (left, top), (right, bottom) = corners
    browser.send("Input.dispatchMouseEvent", type="mousePressed", x=left, y=top, button="left", clickCount=1)
    browser.send("Input.dispatchMouseEvent", type="mouseMoved", x=right, y=bottom, button="left")
    browser.send("Input.dispatchMouseEvent", type="mouseReleased", x=right, y=bottom, button="left", clickCount=1)
    wait_for(browser, "document.querySelectorAll('.reward .total').length === 2")
    image = browser.run(
        "(({naturalWidth, naturalHeight}) => [naturalWidth, naturalHeight])(document.querySelector('.picture img'))"
    )
    numbers = browser.run("[...document.querySelectorAll('#truth input')].map((field) => Number(field.value))")
    expected = [image[0] / 4, image[1] / 4, image[0] / 2, image[1] / 2]
    assert numbers == pytest.approx(expected, abs=1)
    assert browser.problems == []


def test_what_cannot_be_read_is_said_on_the_page(browser, address):
    browser.open(address, width=1000)
    browser.run(
        "(() => { const files = new DataTransfer(); files.items.add(new File(['no image'], 'broken.jpg'));"
        " const field = document.getElementById('file'); field.files = files.files;"
        " field.dispatchEvent(new Event('change')); })()"
    )
    wait_for(browser, "document.getElementById('message').classList.contains('error')")
    assert "broken.jpg" in browser.run("document.getElementById('message').textContent")


def test_a_name_cannot_become_part_of_the_page(browser, address):
    open_scene(browser, address, 3, width=1000)
    browser.run(
        "(() => { const what = document.getElementById('what'); what.value = '<img src=x onerror=boom()>';"
        " what.dispatchEvent(new Event('input')); document.getElementById('label').selectedIndex = 0;"
        " document.getElementById('add').click(); })()"
    )
    wait_for(
        browser, "[...document.querySelectorAll('#truth li')].some((item) => item.textContent.includes('onerror'))"
    )
    assert browser.run("document.querySelectorAll('#truth img, .layer img').length") == 0
    assert browser.problems == []
