"""An engine of vLLM in this process, and what vr1 has to know about the library to run one.

What vLLM does to a process, and what is done about it here:

- it seeds the global generators, replaces ``torch.set_num_threads`` and sets variables: all are restored;
- it starts ``torch.distributed`` where nobody has: an engine is started after the trainer's strategy;
- it caches prompts and image features across requests: `LocalEngine.reset` empties the caches whenever weights
  change, and checks that they are empty;
- version 0.32 computes the rotary positions of Qwen's vision tower with the base 10,000, whatever the configuration
  says: `vr1.rollout.vllm.worker` corrects it.

Private parts of vLLM that this file relies on, tried with 0.32: ``collective_rpc("reload_weights")`` and
``apply_model`` of `LLM`; ``reset_encoder_cache``, ``add_lora``, ``remove_lora`` and ``list_loras`` of its
``llm_engine``.

Shape letters: R requests.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vr1.errors import UserError
from vr1.policy.policy import Policy
from vr1.rollout.sampling import Sampling
from vr1.rollout.vllm.checks import import_vllm
from vr1.rollout.vllm.engine import FORBIDDEN, Completion, Engine, Request
from vr1.rollout.vllm.weights import adapter_tensors, write_adapter
from vr1.rollout.vllm.worker import VisionRope, vision_rope_base
from vr1.seeding import random_states, restore_random_states

__all__ = ["LocalEngine", "preserved_process", "start_llm"]


@contextmanager
def preserved_process() -> Iterator[None]:
    """A context that leaves random generators, threads, precision and environment of the process as they were.

    Variables of vLLM itself stay, since it reads them later.
    """
    states, environment = random_states(), dict(os.environ)
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    precision = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        for name in [name for name in os.environ if name not in environment and not name.startswith("VLLM_")]:
            del os.environ[name]
        os.environ.update({name: value for name, value in environment.items() if not name.startswith("VLLM_")})
        restore_random_states(states)


@torch.inference_mode(False)
def start_llm(path: str, options: dict[str, Any]) -> Any:
    """Start vLLM on a model.

    Args:
        path: a folder or hub name.
        options: arguments of ``vllm.LLM``.

    Raises:
        UserError: vLLM refuses; the message is the last line of its own.
    """
    vllm = import_vllm()
    with preserved_process():
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            # One engine a process: without this, all of them would take the first GPU.
            os.environ["RANK"] = str(torch.distributed.get_rank())
            os.environ.setdefault("LOCAL_RANK", os.environ["RANK"])
            options = {**options, "distributed_executor_backend": "external_launcher"}
        try:
            llm = vllm.LLM(model=path, **options)
        except (ValueError, NotImplementedError) as error:
            # What it says of settings and models that it does not take; any other error shows its traceback.
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            raise UserError(f"model.sampler: vLLM does not start on {path}: {reason}") from error
        if (base := vision_rope_base(llm.llm_engine.model_config.hf_config)) is not None:
            llm.apply_model(VisionRope(base))
    return llm


class LocalEngine(Engine):
    """vLLM in this process.

    Args:
        llm: of `start_llm`.
        lora: whether it was started with room for an adapter.
        sleeps: whether it frees its memory between rollouts.
    """

    def __init__(self, llm: Any, lora: bool = False, sleeps: bool = False) -> None:
        self._llm, self._lora, self._sleeps = llm, lora, sleeps
        self._asleep, self._adapter, self._number = False, None, 0

    @torch.inference_mode(False)
    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """As of every engine; tensor by tensor."""
        self._wake(["weights"])
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        self._wake(["kv_cache"])
        self.reset()

    @torch.inference_mode(False)
    @torch.no_grad()
    def load_adapter(self, policy: Policy) -> None:
        """As of every engine.

        A new adapter gets a new name and number: under a known number vLLM would keep the old one.
        """
        from vllm.lora.request import LoRARequest

        assert self._lora
        self._wake(None)
        self._number += 1
        with tempfile.TemporaryDirectory(prefix="vr1-vllm-") as folder:
            write_adapter(policy, adapter_tensors(policy), Path(folder))
            request = LoRARequest(f"step-{self._number}", self._number, folder)
            if self._adapter is not None:
                self._llm.llm_engine.remove_lora(self._adapter.lora_int_id)
            if not self._llm.llm_engine.add_lora(request):
                raise UserError(f"model.sampler: vLLM did not load the adapter of update {self._number}")
        self._adapter = request
        self.reset()

    def reset(self) -> None:
        """Empty the caches of prompts and of image features, which old weights computed.

        Raises:
            RuntimeError: the engine is still busy.
        """
        self._llm.llm_engine.reset_encoder_cache()
        self._llm.reset_mm_cache()
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not empty its cache of prompts: a request is still running")

    @torch.inference_mode(False)
    @torch.no_grad()
    def generate(
        self, requests: Sequence[Request], sampling: Sampling, end_tokens: Sequence[int], forbidden: Sequence[int]
    ) -> list[Completion]:
        """As of every engine."""
        import vllm

        self._wake(None)
        settings = [
            vllm.SamplingParams(
                n=1,
                temperature=sampling.temperature,
                top_p=sampling.top_p if sampling.temperature else 1.0,
                top_k=0,
                min_p=0.0,
                repetition_penalty=1.0,
                presence_penalty=0.0,
                frequency_penalty=0.0,
                max_tokens=sampling.max_new_tokens,
                seed=request.seed,
                stop_token_ids=list(end_tokens),
                logit_bias=dict.fromkeys(forbidden, FORBIDDEN),
                logprobs=0,
                detokenize=False,
            )
            for request in requests
        ]
        asked = [{"prompt": request.text, "multi_modal_data": {"image": list(request.images)}} for request in requests]
        # vLLM draws from the global generator before it draws with the seeds of the requests.
        with preserved_process():
            outputs = self._llm.generate(
                asked, settings, use_tqdm=False, **({"lora_request": self._adapter} if self._lora else {})
            )
        completions = [_completion(output, end_tokens) for output in outputs]
        if self._sleeps:
            self._llm.sleep(level=1)
            self._asleep = True
        return completions

    def _wake(self, parts: list[str] | None) -> None:
        if self._asleep:
            self._llm.wake_up(tags=parts)
            self._asleep = parts == ["weights"]


def _completion(output: Any, end_tokens: Sequence[int]) -> Completion:
    answer = output.outputs[0]
    tokens = list(answer.token_ids)
    return Completion(
        prompt_tokens=list(output.prompt_token_ids),
        tokens=tokens,
        log_probs=[entries[token].logprob for token, entries in zip(tokens, answer.logprobs, strict=True)],
        finished=tokens[-1] in end_tokens,
    )
