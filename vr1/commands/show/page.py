"""The page and the questions that it sends: images, answers of each model, rewards of an answer for drawn boxes."""

import html
import io
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from vr1.commands.show.server import LOOPBACK
from vr1.data import SceneSource
from vr1.data.images import open_image
from vr1.detector import Detector
from vr1.errors import UserError, user_message
from vr1.types import Prediction, Targets, as_boxes

_HERE = Path(__file__).parent
_MAX_BYTES = 64 << 20
# Images and answers that the page may still ask about; a browser's window needs one image at a time.
_REMEMBERED = 16
_SCENES = 10_000


@dataclass
class _Memory:
    """Images by number, and the latest answer of each model to each of them."""

    images: OrderedDict[int, Image.Image] = field(default_factory=OrderedDict)
    answers: dict[tuple[int, int], Prediction] = field(default_factory=dict)
    last: int = 0

    def add(self, image: Image.Image) -> int:
        self.last += 1
        self.images[self.last] = image
        if len(self.images) > _REMEMBERED:
            old, _ = self.images.popitem(last=False)
            self.answers = {key: value for key, value in self.answers.items() if key[0] != old}
        return self.last


def build_app(detectors: Sequence[Detector], hosts: Sequence[str] = LOOPBACK) -> Starlette:
    """The application of the page.

    It answers requests of its own page alone: the name of the host must be one of ``hosts``, which keeps other web
    sites from reaching it through a name of theirs, and every question has a content type that a browser does not let
    other sites send.

    Args:
        detectors: one model, or two that are shown side by side.
        hosts: names and addresses that the page may be reached by; "*" for any.
    """
    return Starlette(
        routes=_Page(detectors).routes(),
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
        exception_handlers={UserError: _refuse},
    )


async def _refuse(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": user_message(error)}, status_code=422)


class _Page:
    """Handlers of all requests."""

    def __init__(self, detectors: Sequence[Detector]) -> None:
        self.detectors, self.memory = detectors, _Memory()
        # A model answers one question at a time.
        self.lock = threading.Lock()
        self.scenes = SceneSource(_SCENES, "test")

    def routes(self) -> list[Route]:
        """Addresses and their handlers."""
        return [
            Route("/", self.page),
            Route("/image", self.add_image, methods=["POST"]),
            Route("/image/{number:int}", self.image),
            Route("/scene", self.scene, methods=["POST"]),
            Route("/find", self.find, methods=["POST"]),
            Route("/rate", self.rate, methods=["POST"]),
        ]

    async def page(self, _: Request) -> Response:
        """The page, with style and script in it."""
        names = [html.escape(detector.name) for detector in self.detectors]
        models = "".join(
            f'<section class="model" data-model="{row}"><h2>{name}</h2><div class="picture"></div>'
            '<p class="state" aria-live="polite"></p><div class="reward"></div>'
            '<details><summary>The answer as it was written</summary><pre class="answer"></pre></details></section>'
            for row, name in enumerate(names)
        )
        parts = {
            "@STYLE@": (_HERE / "style.css").read_text(encoding="utf-8"),
            "@MODELS@": models,
            "@SCRIPT@": (_HERE / "script.js").read_text(encoding="utf-8"),
        }
        text = (_HERE / "page.html").read_text(encoding="utf-8")
        return HTMLResponse(re.sub("|".join(parts), lambda match: parts[match[0]], text))

    async def add_image(self, request: Request) -> Response:
        """Take an image file as the body of a request; answers with its number and size."""
        _check_type(request, "application/octet-stream")
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > _MAX_BYTES:
                raise UserError(f"the file has more than {_MAX_BYTES >> 20} MB; give a smaller one")
        image = await run_in_threadpool(open_image, request.query_params.get("name", "image"), data=bytes(data))
        return self._added(image)

    async def scene(self, request: Request) -> Response:
        """Draw a scene with its question and its true boxes."""
        number = _whole(await _body(request), "number") % _SCENES
        record = await run_in_threadpool(self.scenes.__getitem__, number)
        truth = [
            {"box": box, "label": label} for box, label in zip(record.boxes_xyxy.tolist(), record.labels, strict=True)
        ]
        return self._added(record.image, categories=list(record.categories), truth=truth)

    def _added(self, image: Image.Image, **more: Any) -> Response:
        number = self.memory.add(image)
        return JSONResponse({"image": number, "width": image.width, "height": image.height, **more})

    async def image(self, request: Request) -> Response:
        """An image as the models see it: upright and RGB."""
        buffer = io.BytesIO()
        self._image(request.path_params["number"]).save(buffer, "JPEG", quality=92)
        return Response(buffer.getvalue(), media_type="image/jpeg")

    async def find(self, request: Request) -> Response:
        """Ask a model; answers with boxes, labels, scores, the text and the seconds that it took."""
        body = await _body(request)
        number, model = _whole(body, "image"), self._model(body)
        image, referring = self._image(number), bool(body.get("referring"))
        phrase = str(body.get("what", ""))
        categories = [phrase] if referring else phrase.split(",")
        prediction, seconds = await run_in_threadpool(self._find, model, image, categories, referring)
        self.memory.answers[number, model] = prediction
        found = prediction.detections
        return JSONResponse(
            {
                "boxes": [
                    {"box": box, "label": label, "score": score}
                    for box, label, score in zip(
                        found.boxes_xyxy.tolist(), found.labels, found.scores.tolist(), strict=True
                    )
                ],
                "text": prediction.completion,
                "question": prediction.instruction,
                "valid": found.valid,
                "problems": list(found.problems),
                "seconds": seconds,
            }
        )

    def _find(
        self, model: int, image: Image.Image, categories: Sequence[str], referring: bool
    ) -> tuple[Prediction, float]:
        with self.lock:
            started = time.perf_counter()
            prediction = self.detectors[model].find(image, categories, referring=referring)
            return prediction, time.perf_counter() - started

    async def rate(self, request: Request) -> Response:
        """The rewards of the latest answer of a model for the true boxes of the request."""
        body = await _body(request)
        number, model = _whole(body, "image"), self._model(body)
        known = self.memory.answers.get((number, model))
        if known is None:
            raise UserError("this model has not answered about the image; ask it first")
        targets = _targets(body.get("truth"))
        rated = await run_in_threadpool(self.detectors[model].rate, known, targets)
        overlaps = np.zeros(rated.match.num_predicted)
        overlaps[rated.match.predicted] = rated.match.box_overlap
        missed = sorted({*range(rated.match.num_targets)} - {*rated.match.target.tolist()})
        return JSONResponse({"rewards": rated.rewards, "overlaps": overlaps.tolist(), "missed": missed})

    def _image(self, number: int) -> Image.Image:
        if number not in self.memory.images:
            raise UserError("this image is no longer remembered; choose it again")
        return self.memory.images[number]

    def _model(self, body: Mapping[str, Any]) -> int:
        model = _whole(body, "model")
        if model >= len(self.detectors):
            raise UserError(f"model={model}: there are {len(self.detectors)}, counted from 0")
        return model


def _check_type(request: Request, kind: str) -> None:
    if request.headers.get("content-type", "").partition(";")[0] != kind:
        raise UserError(f"a request with a content type other than {kind} is not answered")


async def _body(request: Request) -> Mapping[str, Any]:
    """The JSON object of a request."""
    _check_type(request, "application/json")
    try:
        body = await request.json()
    except ValueError as error:
        raise UserError(f"the request is no JSON ({error})") from error
    if not isinstance(body, Mapping):
        raise UserError("the request is no JSON object")
    return body


def _whole(body: Mapping[str, Any], name: str) -> int:
    value = body.get(name)
    if type(value) is not int or value < 0:
        raise UserError(f"{name}={value!r}: give a whole number of at least 0")
    return value


def _targets(truth: Any) -> Targets:
    """True boxes of a request: a list of objects with ``box``, four numbers, and ``label``."""
    try:
        boxes = as_boxes([[float(number) for number in item["box"]] for item in truth])
        labels = tuple(str(item["label"]) for item in truth)
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"truth is no list of boxes with four numbers and a label ({error})") from error
    if len(boxes) != len(labels) or not np.isfinite(boxes).all() or not (boxes[:, :2] < boxes[:, 2:]).all():
        raise UserError("truth has a box without an area; give x1 < x2 and y1 < y2")
    return Targets(boxes_xyxy=boxes, labels=labels)
