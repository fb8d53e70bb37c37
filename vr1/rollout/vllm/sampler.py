"""The sampler that asks vLLM: an engine in this process, or a server on other devices.

Shape letters: B prompts, P prompt tokens, G group size, C completion tokens.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vr1.distributed import is_first
from vr1.errors import UserError
from vr1.policy.loading import PolicySource
from vr1.policy.policy import Policy
from vr1.prompts import PromptBatch
from vr1.rollout.generate import decode_texts
from vr1.rollout.sampler import Sampler, Workload
from vr1.rollout.sampling import Sampling
from vr1.rollout.vllm.checks import (
    adapter_rank,
    check_model,
    check_room,
    check_server,
    check_sleep,
    check_url,
    check_version,
    find_vllm,
)
from vr1.rollout.vllm.engine import Completion, Engine, Request
from vr1.rollout.vllm.local import LocalEngine, start_llm
from vr1.rollout.vllm.memory import engine_memory
from vr1.rollout.vllm.served import ServedEngine, Server, folder_for, shared_folder
from vr1.rollout.vllm.weights import all_weights, write_base
from vr1.rollout.vllm.worker import vision_rope_base
from vr1.types import Prefix, Rollout

__all__ = ["VLLMSampler", "completion_seed"]

# Mean differences of log-probs that another order of the same sums explains, by precision; stale weights show more.
_MAX_GAP = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.05}
# Completions of the comparison at the start.
_COMPARED = Sampling(group_size=2, max_new_tokens=64)
# Images of a prompt, at most.
_MAX_IMAGES = 16
# Arguments of vLLM that follow from the training.
_OWN = {"model", "dtype", "max_model_len", "enable_lora", "max_lora_rank", "logprobs_mode", "kv_cache_memory_bytes"}


class VLLMSampler(Sampler):
    """Samples with vLLM, which gets the policy's weights before every rollout.

    An engine runs in each process of the training, beside the policy. With ``url`` all processes use one server on
    other devices instead: ``python -m vr1 vllm_server`` starts it, with the arguments of the training.

    At the first rollout the engine's log-probs are compared with the policy's; a larger difference than ``max_gap``
    ends the training, then and later. docs/how_to/vllm.md says when it is worth its memory.

    Args:
        cache_gib: memory for keys and values in GiB, on each device.
        max_sequences: completions that are decoded at a time; further ones wait.
        dtype: precision of the engine; None takes that of the training's forward.
        sleep: free the engine's memory on the GPU between rollouts, for the time that this takes.
        max_gap: largest mean difference of log-probs between engine and policy, in nats; None takes 0.001 in float32
            and 0.05 in 16 bits.
        eager: run without compiled kernels and CUDA graphs; None does so on a CPU, where compiling takes minutes.
        untested_version: allow a version of vLLM that vr1 was not tested with.
        options: further arguments of ``vllm.LLM``, such as ``tensor_parallel_size`` of a server.
        url: address of the server, such as ``http://127.0.0.1:8000``. Its token is read from ``VLLM_API_KEY``. Other
            machines than this one need a token and ``folder``.
        folder: where weights are written for the server, on a disk that both read; None takes one of this machine.

    Raises:
        UserError: a setting outside its range, or an option that vr1 sets by itself.
    """

    computes_with_policy = False

    def __init__(
        self,
        cache_gib: float = 4.0,
        max_sequences: int = 256,
        dtype: str | None = None,
        sleep: bool = False,
        max_gap: float | None = None,
        eager: bool | None = None,
        untested_version: bool = False,
        options: dict[str, Any] | None = None,
        url: str | None = None,
        folder: str | None = None,
    ) -> None:
        if not cache_gib > 0:
            raise UserError(f"model.sampler: cache_gib={cache_gib} must be above 0; 4 is usual")
        if max_sequences < 1:
            raise UserError(f"model.sampler: max_sequences={max_sequences} must be at least 1; 256 is usual")
        if dtype is not None and dtype not in _MAX_GAP:
            raise UserError(f"model.sampler: dtype={dtype!r} must be one of {', '.join(_MAX_GAP)}")
        if max_gap is not None and not max_gap > 0:
            raise UserError(f"model.sampler: max_gap={max_gap} must be above 0; leave it out")
        if taken := sorted(_OWN & set(options or {})):
            raise UserError(f"model.sampler.options: {', '.join(taken)} follow from the training; leave them out")
        if url is None and folder is not None:
            raise UserError("model.sampler.folder is for the weights of a server; set model.sampler.url too")
        if url is not None:
            check_url(url, folder)
        if url is not None and sleep:
            raise UserError("model.sampler.sleep=true with a url: the server's devices are its own; leave sleep out")
        self.url, self.folder = url, folder
        self.cache_gib, self.max_sequences, self.dtype, self.sleep = cache_gib, max_sequences, dtype, sleep
        self.eager, self.untested_version, self.options = eager, untested_version, dict(options or {})
        self._max_gap = max_gap
        self._workload: Workload | None = None
        self._engine: Engine | None = None

    def setup(self, workload: Workload) -> None:
        """Check vLLM, model, adapters, memory and settings."""
        if self.url is not None:
            check_server(self._server(self.url), workload, self.untested_version)
        else:
            check_version(self.untested_version)
            check_sleep(self.sleep, workload.device.type)
            check_model(workload, self.engine_dtype(workload.dtype), self.cache_gib)
            check_room(workload, self.engine_dtype(workload.dtype), self.cache_gib)
        self._workload = workload

    def _server(self, url: str) -> Server:
        return Server(url, self.max_sequences)

    def engine_dtype(self, computed: str) -> str:
        """The engine's precision, as a name of torch.

        Args:
            computed: that of a forward of the policy.
        """
        return self.dtype or computed

    @property
    def max_gap(self) -> float:
        """The largest mean difference of log-probs that is accepted, in nats."""
        return self._max_gap if self._max_gap is not None else _MAX_GAP[self.engine_dtype(self._work.dtype)]

    @property
    def _work(self) -> Workload:
        assert self._workload is not None, "setup comes first"
        return self._workload

    def synchronise(self, policy: Policy, prompts: PromptBatch) -> None:
        """Start the engine if there is none, and give it the policy's weights; compare both the first time."""
        is_new = self._engine is None
        if self._engine is None:
            self._engine = self._start(policy) if self.url is None else self._connect(policy, self.url)
        if policy.has_adapters:
            self._engine.load_adapter(policy)
        else:
            self._engine.load_weights(all_weights(policy, self._torch_dtype))
        if is_new:
            self._compare(policy, prompts)

    @property
    def _torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.engine_dtype(self._work.dtype))
        return dtype

    def engine_options(self, workload: Workload) -> dict[str, Any]:
        """The arguments of vLLM, but for the path of the model.

        Args:
            workload: what the sampler will be used for.
        """
        lora = workload.source.lora
        adapters = {"enable_lora": True, "max_loras": 1, "max_lora_rank": adapter_rank(lora.rank)} if lora else {}
        return {
            "dtype": self.engine_dtype(workload.dtype),
            "max_model_len": workload.max_prompt_tokens + workload.max_new_tokens,
            "max_num_seqs": self.max_sequences,
            "max_num_batched_tokens": max(8192, workload.max_prompt_tokens),
            "limit_mm_per_prompt": {"image": _MAX_IMAGES},
            "mm_processor_kwargs": _pixel_limits(workload.encoder.processor.image_processor),
            "mm_processor_cache_gb": 1,
            "skip_mm_profiling": True,
            "enable_prefix_caching": True,
            "logprobs_mode": "processed_logprobs",
            "kv_cache_memory_bytes": int(self.cache_gib * 2**30),
            "generation_config": "vllm",
            "enforce_eager": workload.device.type == "cpu" if self.eager is None else self.eager,
            "enable_sleep_mode": self.sleep,
            "seed": 0,
            **adapters,
            **self.options,
        }

    def _start(self, policy: Policy) -> Engine:
        work = self._work
        options, lora = self.engine_options(work), work.source.lora is not None
        with tempfile.TemporaryDirectory(prefix="vr1-vllm-") as folder:
            path = work.source.path
            if work.source.quantize:
                path = folder
                write_base(policy, work.encoder.processor, Path(path), self._torch_dtype)
            return LocalEngine(start_llm(path, options), lora=lora, sleeps=self.sleep)

    def _connect(self, policy: Policy, url: str) -> Engine:
        work = self._work
        size = sum(parameter.numel() for parameter in policy.base.parameters()) * self._torch_dtype.itemsize
        parent = folder_for(size) if self.folder is None else Path(self.folder)
        engine = ServedEngine(self._server(url), parent, self.max_sequences)
        base = vision_rope_base(work.source.config())
        with shared_folder(parent) as folder:
            if is_first():
                if base is not None:
                    engine.set_vision_rope(base)
                if work.source.quantize:
                    write_base(policy, work.encoder.processor, folder, self._torch_dtype)
                    engine.read_weights(folder)
        return engine

    @torch.no_grad()
    def _compare(self, policy: Policy, prompts: PromptBatch) -> None:
        """Compare the log-probs of some completions; all processes do so together, as a sharded policy requires."""
        sampling = replace(_COMPARED, max_new_tokens=min(_COMPARED.max_new_tokens, self._work.max_new_tokens))
        rollout = self.sample(policy, prompts, sampling, self._work.encoder.processor.tokenizer)
        was_training = policy.training
        log_probs, _ = policy.eval().log_probs(prompts, rollout.tokens, rollout.mask)
        policy.train(was_training)
        gaps = (log_probs - rollout.log_probs).abs()[rollout.mask]
        self._refuse(float(gaps.mean()), f"on {len(gaps)} tokens at the start")

    def check_gap(self, mean: Tensor, sampling: Sampling) -> None:
        """As of every sampler; with ``top_p`` below 1 the engine's log-probs are of fewer tokens, and not compared."""
        if sampling.top_p == 1:
            self._refuse(float(mean), "in this rollout")

    def _refuse(self, mean: float, where: str) -> None:
        if not mean <= self.max_gap:
            raise UserError(
                f"model.sampler: log-probs of vLLM and of the policy differ by {mean:.2g} on average {where}, more than"
                f" max_gap={self.max_gap:g}: the engine has other weights, or computes another model; leave"
                " model.sampler out, or raise max_gap if the precision explains it"
            )

    @torch.no_grad()
    def sample(
        self,
        policy: Policy,
        prompts: PromptBatch,
        sampling: Sampling,
        tokenizer: Any,
        draw: int = 0,
        prefix: Prefix | None = None,
        with_graph: bool = False,
    ) -> Rollout:
        """As of every sampler; a prefix is neither used nor made.

        Raises:
            UserError: a prompt has several images.
        """
        for record, count in zip(prompts.records, prompts.image_counts, strict=True):
            if count > 1:
                raise UserError(
                    f"{record.origin}: {count} images in one prompt, and this sampler gives vLLM one; leave"
                    " model.sampler out for these data"
                )
        assert self._engine is not None, "synchronise comes first"
        started, group = time.perf_counter(), sampling.group_size
        requests = [
            Request(
                instruction=instruction,
                text=self._work.encoder.chat(instruction, len(record.prompt_images)),
                images=record.prompt_images,
                seed=completion_seed(draw, record.image_id, place),
            )
            for record, instruction in zip(prompts.records, prompts.instructions, strict=True)
            for place in range(group)
        ]
        completions = self._engine.generate(requests, sampling, policy.eos_tokens, policy.forbidden_tokens)
        self._check_prompts(prompts, completions[::group])
        device, shape = prompts.tokens.device, (len(prompts), group, -1)
        tokens = _padded([item.tokens for item in completions], torch.long, policy.eos_tokens[0]).to(device)
        lengths = torch.tensor([len(item.tokens) for item in completions], device=device)
        mask = torch.arange(tokens.shape[1], device=device)[None] < lengths[:, None]
        log_probs = _padded([item.log_probs for item in completions], torch.float32, 0.0).to(device)
        return Rollout(
            tokens=tokens.reshape(shape),
            mask=mask.reshape(shape),
            finished=torch.tensor([item.finished for item in completions], device=device).reshape(shape[:2]),
            log_probs=log_probs.reshape(shape),
            texts=decode_texts(tokenizer, tokens, mask, prompts),
            seconds={"decode": time.perf_counter() - started},
        )

    def _check_prompts(self, prompts: PromptBatch, completions: list[Completion]) -> None:
        for row, completion in enumerate(completions):
            expected = prompts.tokens[row][prompts.mask[row]].tolist()
            if completion.prompt_tokens != expected:
                raise UserError(
                    f"model.sampler: vLLM reads the prompt of {prompts.records[row].origin} as"
                    f" {len(completion.prompt_tokens)} tokens, and the policy as {len(expected)} others: its processor"
                    " resizes images or writes prompts differently; leave model.sampler out for this model"
                )

    def memory(self, source: PolicySource, dtype: str, parameters: int) -> tuple[dict[str, float], dict[str, float]]:
        """As of every sampler: weights and cache of the engine, which a sleeping one frees outside of rollouts.

        A server has memory of its own.
        """
        if self.url is not None:
            return {}, {}
        needed = engine_memory(source, self.engine_dtype(dtype), self.cache_gib, parameters)
        parts = {"engine weights": needed.weights + needed.adapters, "engine cache": needed.cache}
        return parts, {} if self.sleep else parts

    def describe(self) -> dict[str, Any]:
        """Name, version and precision."""
        if self.url is not None:
            version: str | None = self._server(self.url).version()
        else:
            version = found.version if (found := find_vllm()) else None
        return {
            "sampler": type(self).__name__,
            "vllm": version,
            "served": self.url is not None,
            "dtype": self.engine_dtype(self._workload.dtype) if self._workload else self.dtype,
        }


def completion_seed(draw: int, image_id: int, place: int) -> int:
    """The seed of one completion, which depends on nothing else.

    Args:
        draw: of the rollout.
        image_id: of the record.
        place: in its group.

    Returns:
        A number below 2^63.

    Example:
        >>> completion_seed(0, 1, 2) == completion_seed(0, 1, 2), completion_seed(0, 1, 2) == completion_seed(0, 2, 1)
        (True, False)
    """
    return int(np.random.SeedSequence([draw, image_id, place]).generate_state(1, np.uint64)[0]) >> 1


def _padded(rows: list[Any], dtype: torch.dtype, value: float) -> Tensor:
    return pad_sequence([torch.tensor(row, dtype=dtype) for row in rows], batch_first=True, padding_value=value)


def _pixel_limits(image_processor: Any) -> dict[str, Any]:
    """The processor's own limits of resolution, which a user may have set, as arguments of the same processor."""
    if hasattr(image_processor, "merge_size"):
        size = dict(image_processor.size)
        return {"size": {name: size[name] for name in ("shortest_edge", "longest_edge")}}
    if hasattr(image_processor, "max_patches"):
        return {name: getattr(image_processor, name) for name in ("min_patches", "max_patches", "crop_to_patches")}
    return {}
