"""An engine that is a server of vLLM on other devices: requests and answers by HTTP, weights by files.

``python -m vr1 vllm_server`` starts such a server. Tensors are written as safetensors to a folder that both read, which
is in memory where there is room, and the server is asked to load them. The first process of a training does so for
all, while the others wait.

Parts of the server that this file relies on, tried with 0.32: ``/collective_rpc``, ``/reset_prefix_cache``,
``/reset_mm_cache`` and ``/reset_encoder_cache``, which it has with ``VLLM_SERVER_DEV_MODE=1``;
``/v1/load_lora_adapter`` and ``/v1/unload_lora_adapter``, with ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1``;
``return_token_ids`` of ``/v1/chat/completions``.

Shape letters: R requests.
"""

import base64
import io
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from vr1.distributed import gather, is_first
from vr1.errors import UserError
from vr1.policy.policy import Policy
from vr1.rollout.sampling import Sampling
from vr1.rollout.vllm.checks import TOKEN
from vr1.rollout.vllm.engine import FORBIDDEN, Completion, Engine, Request
from vr1.rollout.vllm.weights import adapter_tensors, write_adapter

__all__ = ["ServedEngine", "Server", "folder_for", "shared_folder"]

_START = "start it with `python -m vr1 vllm_server` and the arguments of the training"
# Bytes of one file of weights, at most: those in memory at a time beside the policy.
_FILE_BYTES = 2 * 2**30
# The server empties a cache as soon as its last request is done.
_RESET_SECONDS = 30.0
_NEEDED = ("/collective_rpc", "/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache")
_NEEDED_FOR_ADAPTERS = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")


class Server:
    """The address of a server, and what it answers.

    Its token is read from the variable ``VLLM_API_KEY``, as the server itself reads it.

    Args:
        url: such as ``http://127.0.0.1:8000``.
        parallel: requests at a time.
    """

    def __init__(self, url: str, parallel: int = 1) -> None:
        self.url = url.rstrip("/")
        token = os.environ.get(TOKEN)
        self._client = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            # An answer takes as long as decoding it does; only a server that is not there is noticed by time.
            timeout=httpx.Timeout(None, connect=10.0),
            # A connection for each request: the server closes idle ones, at a moment when a request may be under way.
            limits=httpx.Limits(max_connections=parallel, max_keepalive_connections=0),
            trust_env=False,
        )

    def get(self, path: str) -> Any:
        """What the server answers to a question.

        Args:
            path: such as ``/version``.

        Raises:
            UserError: no answer, or an error.
        """
        return self._ask("GET", path, None)

    def post(self, path: str, content: Any = None) -> Any:
        """What the server answers to a request.

        Args:
            path: such as ``/reset_mm_cache``.
            content: what to send, as JSON.

        Raises:
            UserError: no answer, or an error.
        """
        return self._ask("POST", path, content)

    def _ask(self, method: str, path: str, content: Any) -> Any:
        try:
            response = self._client.request(method, path, json=content)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UserError(
                f"model.sampler.url={self.url}: no server answers there ({error or type(error).__name__}); {_START}"
            ) from error
        if response.status_code == httpx.codes.UNAUTHORIZED:
            raise UserError(f"model.sampler.url={self.url}: the server asks for a token; set {TOKEN} to it")
        if response.is_error:
            reason = " ".join(response.text.split())[:300]
            raise UserError(f"model.sampler.url={self.url}: {path} failed with {response.status_code}: {reason}")
        try:
            return response.json() if response.content else None
        except ValueError:
            # Some requests are answered by a sentence.
            return response.text

    def version(self) -> str:
        """The version of vLLM."""
        return str(self.get("/version")["version"])

    def max_tokens(self) -> int:
        """Tokens of the longest sequence, prompt and completion."""
        return int(self.get("/v1/models")["data"][0]["max_model_len"])

    def check_requests(self, adapters: bool) -> None:
        """Check that the server takes weights.

        Args:
            adapters: whether it must take adapters too.

        Raises:
            UserError: it was started otherwise.
        """
        known = self.get("/openapi.json")["paths"]
        missing = [path for path in (*_NEEDED, *(_NEEDED_FOR_ADAPTERS if adapters else ())) if path not in known]
        if missing:
            raise UserError(f"model.sampler.url={self.url}: the server has no {', '.join(missing)}; {_START}")


class ServedEngine(Engine):
    """A server of vLLM with the weights of a policy.

    Args:
        server: the server.
        folder: where weights are written, for the server to read.
        parallel: requests at a time.
    """

    def __init__(self, server: Server, folder: Path, parallel: int) -> None:
        self._server, self._folder, self._parallel = server, folder, parallel
        self._adapter: str | None = None
        self._model = str(server.get("/v1/models")["data"][0]["id"])
        self._name, self._number = uuid.uuid4().hex[:8], 0

    def set_vision_rope(self, base: float) -> None:
        """Set the base of the vision tower's rotary positions; to be called by one process.

        Args:
            base: of `vr1.rollout.vllm.worker.vision_rope_base`.
        """
        self._call("set_vision_rope", base=str(base))

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """As of every engine; all processes gather the tensors, and the first one writes them."""
        with shared_folder(self._folder) as folder:
            _write_weights(weights, folder)
            if is_first():
                self.read_weights(folder)

    def read_weights(self, folder: Path) -> None:
        """Have the server read its weights from a folder, and empty its caches.

        Args:
            folder: with safetensors that have the names of the model's own files.
        """
        self._call("reload_weights", weights_path=str(folder))
        self._reset()

    @torch.no_grad()
    def load_adapter(self, policy: Policy) -> None:
        """As of every engine; each adapter has a name that no other one had."""
        adapters = adapter_tensors(policy)
        self._number += 1
        name = f"{self._name}-{self._number}"
        with shared_folder(self._folder) as folder:
            if is_first():
                write_adapter(policy, adapters, folder)
                if self._adapter is not None:
                    self._server.post("/v1/unload_lora_adapter", {"lora_name": self._adapter})
                self._server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
                self._reset()
        # The other processes ask for the name that the first one gave.
        self._adapter = gather(name)[0]

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, end_tokens: Sequence[int], forbidden: Sequence[int]
    ) -> list[Completion]:
        """As of every engine."""
        encoded: dict[int, str] = {}
        for image in (image for request in requests for image in request.images):
            if id(image) not in encoded:
                encoded[id(image)] = _data_url(image)
        settings = {
            "model": self._adapter or self._model,
            "n": 1,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p if sampling.temperature else 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "max_tokens": sampling.max_new_tokens,
            "stop_token_ids": list(end_tokens),
            "logit_bias": {str(token): FORBIDDEN for token in forbidden},
            "logprobs": True,
            "top_logprobs": 0,
            "return_token_ids": True,
        }

        def answer(request: Request) -> Completion:
            content = [{"type": "image_url", "image_url": {"url": encoded[id(image)]}} for image in request.images]
            message = {"role": "user", "content": [*content, {"type": "text", "text": request.instruction}]}
            asked = {**settings, "messages": [message], "seed": request.seed}
            return _completion(self._server.post("/v1/chat/completions", asked), end_tokens)

        with ThreadPoolExecutor(self._parallel) as threads:
            return list(threads.map(answer, requests))

    def _call(self, method: str, **settings: str) -> None:
        self._server.post("/collective_rpc", {"method": method, "kwargs": settings})

    def _reset(self) -> None:
        """Empty the caches of prompts and of image features, which old weights computed."""
        self._server.post("/reset_encoder_cache")
        self._server.post("/reset_mm_cache")
        end = time.monotonic() + _RESET_SECONDS
        while not self._server.post("/reset_prefix_cache")["success"]:
            if time.monotonic() > end:
                raise UserError(
                    f"model.sampler.url={self._server.url}: the server does not empty its cache of prompts: others use"
                    " it too; give each training a server of its own"
                )
            time.sleep(0.1)


@contextmanager
def shared_folder(parent: Path) -> Iterator[Path]:
    """A new folder that the first process of a training makes and removes.

    All processes enter and leave together, so that none samples meanwhile, and an error of one ends all.

    Args:
        parent: where to make it.

    Raises:
        UserError: that of one of the processes.
    """
    made = tempfile.TemporaryDirectory(prefix="vr1-weights-", dir=parent) if is_first() else None
    folder, error = Path(gather(made.name if made else "")[0]), None
    try:
        yield folder
    except UserError as raised:
        error = raised
    finally:
        if made is not None:
            made.cleanup()
    failures = [text for text in gather(None if error is None else str(error)) if text]
    if failures:
        raise UserError(failures[0]) from error


def folder_for(size: int) -> Path:
    """A folder for weights: in memory where there is room for them, otherwise the system's for temporary files.

    Args:
        size: bytes.
    """
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 1.2 * size:
        return memory
    return Path(tempfile.gettempdir())


def _write_weights(weights: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Write tensors in files of a limited size; all processes gather them, and the first one writes."""
    part: dict[str, Tensor] = {}
    number = size = 0

    def write() -> None:
        if part:
            save_file(part, folder / f"model-{number:05d}.safetensors", metadata={"format": "pt"})
            part.clear()

    for name, value in weights:
        if not is_first():
            continue
        if size + value.nbytes > _FILE_BYTES:
            write()
            number, size = number + 1, 0
        # A copy, since a file must not have two names for one piece of memory.
        part[name] = value.detach().to("cpu", copy=True).contiguous()
        size += value.nbytes
    write()


def _data_url(image: Image.Image) -> str:
    """An image without loss, as the text that a request has for it."""
    written = io.BytesIO()
    image.save(written, format="PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"


def _completion(answer: Any, end_tokens: Sequence[int]) -> Completion:
    (choice,) = answer["choices"]
    tokens = list(choice["token_ids"])
    return Completion(
        prompt_tokens=list(answer["prompt_token_ids"]),
        tokens=tokens,
        log_probs=[entry["logprob"] for entry in choice["logprobs"]["content"]],
        finished=tokens[-1] in end_tokens,
    )
