"""The embedded model: training, exact resume, a KL of 0 at the first step, and tokens and log-probs as on a CPU."""

import tempfile
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from gpu_steps.models import available
from gpu_steps.run import Bench, SkippedError
from vr1.data import SceneDataModule
from vr1.families import Qwen25VL
from vr1.losses import GRPO
from vr1.modules.grpo import GRPOModule
from vr1.policy import Lora, PolicySource
from vr1.prompts import PromptBatch, PromptEncoder
from vr1.rollout import Sampling, generate
from vr1.rollout.graphs import StepGraphs
from vr1.rollout.kernels import Kernels
from vr1.rollout.kernels.check import compare


def run(bench: Bench) -> None:
    """Measure."""
    if not bench.has("greedy_tokens_equal_cpu"):
        with bench.part("greedy_tokens_equal_cpu"):
            bench.record(greedy_tokens_equal_cpu=_greedy(bench))
    with bench.part("kernels_against_torch"):
        bench.record(kernels_against_torch=_kernels(bench))
    with bench.part("tokens_equal_with_graphs"):
        bench.record(tokens_equal_with_graphs=_graphs(bench))
    for name, source in _sources(bench).items():
        with bench.part(f"sampler_gap {name}"):
            if source.quantize and not available("bitsandbytes"):
                raise SkippedError("bitsandbytes is not installed")
            bench.record(**{f"sampler_gap {name}": sampler_gap(bench, source)})
    for name, source in _sources(bench).items():
        if bench.has(f"training {name}"):
            continue
        with bench.part(f"training {name}"):
            if source.quantize and not available("bitsandbytes"):
                raise SkippedError("bitsandbytes is not installed")
            bench.record(**{f"training {name}": _resumed(bench, source)})


def _sources(bench: Bench) -> dict[str, PolicySource]:
    sources = {"float32": PolicySource(), "LoRA": PolicySource(lora=Lora())}
    if bench.device == "cuda":
        sources["bf16 + LoRA"] = PolicySource(dtype="bfloat16", lora=Lora(), gradient_checkpointing=True)
        sources["NF4 + LoRA"] = PolicySource(dtype="bfloat16", lora=Lora(), quantize="nf4", gradient_checkpointing=True)
    return sources


def _tokens(bench: Bench, of_gpu: int) -> int:
    """Tokens of a completion; a CPU takes fewer, to try the code."""
    return of_gpu if bench.device == "cuda" else of_gpu // 4


def _prompts(source: PolicySource, count: int) -> PromptBatch:
    data = SceneDataModule(train_scenes=count, val_scenes=count, num_workers=0)
    scenes = data.build("val")
    return PromptEncoder(source.processor(), Qwen25VL(), 1024)([scenes[index] for index in range(count)])


def _greedy(bench: Bench) -> float:
    """Share of equal tokens of greedy answers in float32, device against CPU."""
    source, greedy = PolicySource(), Sampling(group_size=1, temperature=0.0, max_new_tokens=_tokens(bench, 96))
    prompts, tokenizer = _prompts(source, 4), source.processor().tokenizer
    torch.backends.cuda.matmul.allow_tf32 = False
    here = generate(source.load().eval(), prompts, greedy, tokenizer)
    there = generate(source.load().eval().to(bench.device), prompts.to(bench.device), greedy, tokenizer)
    pairs = zip(here.texts, there.texts, strict=True)
    return sum(first == second for first, second in pairs) / len(prompts)


def _kernels(bench: Bench) -> dict[str, float]:
    """Largest relative differences of vr1's decoding kernels, for the heads of several models."""
    if bench.device != "cuda":
        raise SkippedError("the kernels require a GPU")
    device, found = torch.device("cuda"), {}
    for heads, kv_heads, width in ((28, 4, 128), (16, 2, 128), (32, 8, 128), (4, 2, 16), (8, 8, 64)):
        for dtype in (torch.float32, torch.bfloat16):
            found[f"{heads}/{kv_heads}/{width} {dtype}"] = compare(heads, kv_heads, width, dtype, device)
    return found


def _graphs(bench: Bench) -> float | str:
    """Share of equal sampled answers in float32, replayed kernels against torch's operators; or why there were none."""
    if bench.device != "cuda":
        raise SkippedError("CUDA graphs require a GPU")
    source, sampling, graphs = PolicySource(), Sampling(group_size=8, max_new_tokens=200), StepGraphs()
    prompts, tokenizer = _prompts(source, 4).to(bench.device), source.processor().tokenizer
    policy = source.load().eval().to(bench.device)
    kernels = Kernels()
    eager, replayed = (
        generate(policy, prompts, sampling, tokenizer, graphs=way, kernels=own)
        for way, own in ((None, None), (graphs, kernels))
    )
    if failure := graphs.failure or kernels.failure:
        return f"failed: {failure}"
    pairs = zip(chain(*eager.texts), chain(*replayed.texts), strict=True)
    return sum(first == second for first, second in pairs) / (4 * sampling.group_size)


def sampler_gap(bench: Bench, source: PolicySource) -> dict[str, float]:
    """Difference of log-probs between sampling and the training pass, which knows no forbidden tokens."""
    policy = source.load().eval().to(bench.device)
    prompts = _prompts(source, 4).to(bench.device)
    sampling = Sampling(group_size=4, max_new_tokens=_tokens(bench, 96))
    mixed = torch.autocast(bench.device, torch.bfloat16, enabled=source.dtype == "bfloat16", cache_enabled=False)
    with mixed, torch.no_grad():
        rollout = generate(policy, prompts, sampling, source.processor().tokenizer)
        trained, _ = policy.log_probs(prompts, rollout.tokens, rollout.mask)
    gap = (rollout.log_probs - trained).abs()[rollout.mask]
    return {"mean": float(gap.mean()), "max": float(gap.max()), "tokens": int(rollout.mask.sum())}


def _resumed(bench: Bench, source: PolicySource) -> dict[str, Any]:
    """Three steps at once against two, a checkpoint, and one more; and the KL of the first step."""
    with tempfile.TemporaryDirectory() as folder:
        straight, first = _fit(bench, source, 3, Path(folder) / "straight")
        _fit(bench, source, 2, Path(folder) / "parts")
        resumed, _ = _fit(bench, source, 3, Path(folder) / "more", Path(folder) / "parts" / "last.ckpt")
    gaps = [(straight[name] - value).abs().max() for name, value in resumed.items()]
    return {"kl_at_first_step": first, "largest_difference_after_resume": float(max(gaps))}


def _fit(
    bench: Bench, source: PolicySource, steps: int, folder: Path, checkpoint: Path | None = None
) -> tuple[dict[str, Tensor], float]:
    """Trained parameters after some steps, and the first step's KL."""
    kl: list[float] = []

    class FirstKL(L.Callback):
        """Reads the KL after the first step."""

        def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
            kl.append(float(trainer.callback_metrics["grpo/kl"]))

    L.seed_everything(0, verbose=False)
    module = GRPOModule(
        policy=source,
        sampling=Sampling(group_size=4, max_new_tokens=_tokens(bench, 64)),
        loss=GRPO(kl_coef=0.1),
        optimizer=partial(torch.optim.AdamW, lr=1e-4, fused=bench.device == "cuda"),
    )
    precision: Any = "bf16-mixed" if source.dtype == "bfloat16" else "32-true"
    trainer = bench.checkpointing_trainer(folder, steps, precision=precision, callbacks=[FirstKL()])
    prompts = 4 if bench.device == "cuda" else 2
    data = SceneDataModule(train_scenes=16, val_scenes=4, batch_size=prompts, num_workers=0)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    trained = {name: part.detach().cpu() for name, part in module.named_parameters() if part.requires_grad}
    return trained, kl[0]
