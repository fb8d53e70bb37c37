"""The sampler that asks an engine of vLLM.

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

from vr1.errors import UserError
from vr1.policy.loading import PolicySource
from vr1.policy.policy import Policy
from vr1.prompts import PromptBatch
from vr1.rollout.generate import decode_texts
from vr1.rollout.sampler import Sampler, Workload
from vr1.rollout.sampling import Sampling
from vr1.rollout.vllm.checks import adapter_rank, check_model, check_sleep, check_version, find_vllm
from vr1.rollout.vllm.engine import Completion, Engine, Request, start_llm
from vr1.rollout.vllm.memory import engine_memory
from vr1.rollout.vllm.weights import all_weights, write_adapter, write_base
from vr1.types import Prefix, Rollout

__all__ = ["VLLMSampler", "completion_seed"]

# Mean differences of log-probs that another order of the same sums explains, by precision; stale weights show more.
_MAX_GAP = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.05}
# Completions of the comparison at the start.
_COMPARED = Sampling(group_size=2, max_new_tokens=64)
# Images of a prompt, at most.
_MAX_IMAGES = 16
# Arguments of vllm.LLM that follow from the training.
_OWN = {"model", "dtype", "max_model_len", "enable_lora", "max_lora_rank", "logprobs_mode", "kv_cache_memory_bytes"}


class VLLMSampler(Sampler):
    """Samples with vLLM: an engine in each process of the training, with the policy's weights before every rollout.

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
        options: further arguments of ``vllm.LLM``.

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
        self.cache_gib, self.max_sequences, self.dtype, self.sleep = cache_gib, max_sequences, dtype, sleep
        self.eager, self.untested_version, self.options = eager, untested_version, dict(options or {})
        self._max_gap = max_gap
        self._workload: Workload | None = None
        self._engine: Engine | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def setup(self, workload: Workload) -> None:
        """Check vLLM, model, adapters, memory and settings."""
        check_version(self.untested_version)
        check_sleep(self.sleep, workload.device.type)
        check_model(workload, self.engine_dtype(workload.dtype), self.cache_gib)
        self._workload = workload

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
            self._engine = self._start(policy)
        self._push(self._engine, policy)
        if is_new:
            self._compare(policy, prompts)

    def _start(self, policy: Policy) -> Engine:
        work, dtype = self._work, self.engine_dtype(self._work.dtype)
        self._folder = tempfile.TemporaryDirectory(prefix="vr1-vllm-")
        path, rank = work.source.path, work.source.lora.rank if work.source.lora else None
        if work.source.quantize:
            path = self._folder.name
            write_base(policy, work.encoder.processor, Path(path), getattr(torch, dtype))
        options = {
            "dtype": dtype,
            "max_model_len": work.max_prompt_tokens + work.max_new_tokens,
            "max_num_seqs": self.max_sequences,
            "max_num_batched_tokens": max(8192, work.max_prompt_tokens),
            "limit_mm_per_prompt": {"image": _MAX_IMAGES},
            "mm_processor_kwargs": _pixel_limits(work.encoder.processor.image_processor),
            "mm_processor_cache_gb": 1,
            "skip_mm_profiling": True,
            "enable_prefix_caching": True,
            "logprobs_mode": "processed_logprobs",
            "kv_cache_memory_bytes": int(self.cache_gib * 2**30),
            "generation_config": "vllm",
            "enforce_eager": work.device.type == "cpu" if self.eager is None else self.eager,
            "enable_sleep_mode": self.sleep,
            "seed": 0,
            **({} if rank is None else {"enable_lora": True, "max_loras": 1, "max_lora_rank": adapter_rank(rank)}),
            **self.options,
        }
        engine = Engine(start_llm(path, options), lora=rank is not None, sleeps=self.sleep)
        for file in Path(self._folder.name).glob("*.safetensors"):
            file.unlink()
        return engine

    def _push(self, engine: Engine, policy: Policy) -> None:
        if not policy.has_adapters:
            engine.load_weights(all_weights(policy, getattr(torch, self.engine_dtype(self._work.dtype))))
            return
        assert self._folder is not None
        with tempfile.TemporaryDirectory(dir=self._folder.name) as folder:
            write_adapter(policy, Path(folder))
            engine.load_adapter(Path(folder))

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

    def check_gap(self, mean: float, sampling: Sampling) -> None:
        """As of every sampler; with ``top_p`` below 1 the engine's log-probs are of fewer tokens, and not compared."""
        if sampling.top_p == 1:
            self._refuse(mean, "in this rollout")

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
        """As of every sampler: weights and cache of the engine, which a sleeping one frees outside of rollouts."""
        needed = engine_memory(source, self.engine_dtype(dtype), self.cache_gib, parameters)
        parts = {"engine weights": needed.weights + needed.adapters, "engine cache": needed.cache}
        return parts, {} if self.sleep else parts

    def describe(self) -> dict[str, Any]:
        """Name, version and precision."""
        found = find_vllm()
        return {
            "sampler": type(self).__name__,
            "vllm": found.version if found else None,
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
