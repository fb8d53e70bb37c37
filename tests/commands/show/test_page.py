"""The page's requests, by Starlette's own client."""

import io

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from vr1.commands.show.page import build_app
from vr1.data import SceneSource
from vr1.detector import Detector

BINARY = {"content-type": "application/octet-stream"}


@pytest.fixture(scope="module")
def detector():
    return Detector.load(device="cpu", max_new_tokens=160)


@pytest.fixture
def client(detector):
    return TestClient(build_app([detector]), base_url="http://127.0.0.1:8000")


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def upload(client, image):
    return client.post("/image?name=photo.png", content=png(image), headers=BINARY).json()


def test_answers_and_rewards_are_those_of_the_detector(client, detector):
    record = SceneSource(8, "val")[1]
    sent = upload(client, record.image)
    assert (sent["width"], sent["height"]) == record.image_size
    what = ", ".join(record.categories)
    answer = client.post("/find", json={"image": sent["image"], "model": 0, "what": what}).json()
    found = detector.find(record.image, record.categories).detections
    assert answer["text"] == found.completion
    np.testing.assert_allclose([item["box"] for item in answer["boxes"]], found.boxes_xyxy)
    np.testing.assert_allclose([item["score"] for item in answer["boxes"]], found.scores)
    assert answer["boxes"], "this scene's answer has boxes"
    # With its own boxes as the true ones an answer is perfect, and a box without an answer is missed.
    truth = [{"box": item["box"], "label": item["label"]} for item in answer["boxes"]]
    rated = client.post("/rate", json={"image": sent["image"], "model": 0, "truth": truth}).json()
    assert rated["overlaps"] == pytest.approx([1.0] * len(truth))
    assert (rated["rewards"]["recall"], rated["rewards"]["precision"], rated["missed"]) == (1.0, 1.0, [])
    other = {"box": [0, 0, 1, 1], "label": truth[0]["label"]}
    rated = client.post("/rate", json={"image": sent["image"], "model": 0, "truth": [*truth, other]}).json()
    assert rated["missed"] == [len(truth)]
    # The overlaps shown are those of the boxes; a wrong label costs rewards.
    relabelled = [{**item, "label": "another thing"} for item in truth]
    rated = client.post("/rate", json={"image": sent["image"], "model": 0, "truth": relabelled}).json()
    assert rated["overlaps"] == pytest.approx([1.0] * len(truth))
    assert (rated["rewards"]["recall"], rated["rewards"]["precision"], rated["missed"]) == (0.0, 0.0, [])


def test_a_photo_is_shown_upright(client):
    image = Image.new("RGB", (40, 20), "red")
    exif = Image.Exif()
    exif[274] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    sent = client.post("/image", content=buffer.getvalue(), headers=BINARY).json()
    assert (sent["width"], sent["height"]) == (20, 40)
    assert Image.open(io.BytesIO(client.get(f"/image/{sent['image']}").content)).size == (20, 40)


def test_a_scene_brings_its_question_and_boxes(client):
    scene = client.post("/scene", json={"number": 3}).json()
    record = SceneSource(10_000, "test")[3]
    assert scene["categories"] == list(record.categories)
    np.testing.assert_array_equal([item["box"] for item in scene["truth"]], record.boxes_xyxy.tolist())


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/find", {"image": 99, "model": 0, "what": "cat"}, "no longer remembered"),
        ("/find", {"image": 1, "model": 1, "what": "cat"}, "model=1"),
        ("/find", {"image": 1, "model": 0, "what": " , "}, "nothing to find is named"),
        ("/find", {"image": "1", "model": 0, "what": "cat"}, "image='1'"),
        ("/find", ["image"], "no JSON object"),
        ("/rate", {"image": 1, "model": 0, "truth": []}, "has not answered"),
        ("/scene", {}, "number=None"),
    ],
)
def test_a_bad_question_is_refused_in_one_line(client, path, body, message):
    upload(client, Image.new("RGB", (64, 48)))
    answer = client.post(path, json=body)
    assert answer.status_code == 422
    assert message in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    "truth",
    [None, [{"box": [1, 2, 3], "label": "a"}], [{"box": [5, 0, 5, 9], "label": "a"}], [{"box": ["x", 0, 5, 9]}], 3],
)
def test_bad_true_boxes_are_refused(client, truth):
    number = upload(client, Image.new("RGB", (64, 48)))["image"]
    assert client.post("/find", json={"image": number, "model": 0, "what": "star"}).status_code == 200
    answer = client.post("/rate", json={"image": number, "model": 0, "truth": truth})
    assert answer.status_code == 422
    assert "truth" in answer.json()["error"]


@pytest.mark.parametrize("content", [b"", b"no image", png(Image.new("RGB", (9, 9)))[:40]])
def test_a_damaged_file_is_refused_with_its_name(client, content):
    answer = client.post("/image?name=broken.jpg", content=content, headers=BINARY)
    assert answer.status_code == 422
    assert "broken.jpg" in answer.json()["error"]


def test_other_sites_get_no_answer(client):
    assert client.get("/", headers={"host": "attacker.example"}).status_code == 400
    # What a form or a script of another site can send without asking the browser's permission first.
    simple = client.post("/scene", content='{"number": 1}', headers={"content-type": "text/plain"})
    assert simple.status_code == 422
    assert client.post("/image", content=b"x", headers={"content-type": "image/png"}).status_code == 422
    assert "access-control-allow-origin" not in client.get("/").headers


def test_only_the_latest_images_are_remembered(client):
    first = upload(client, Image.new("RGB", (8, 8)))["image"]
    for _ in range(16):
        upload(client, Image.new("RGB", (8, 8)))
    assert client.get(f"/image/{first}").status_code == 422
