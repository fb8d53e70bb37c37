"""The whole GRPO step of the large model under a Lightning trainer: its parts, tokens a second, and peak memory."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from gpu_steps.decoding import longest_kernels
from gpu_steps.models import Variant, random_policy, records, source_of
from gpu_steps.run import Bench
from vr1.losses import GRPO
from vr1.modules.grpo import GRPOModule
from vr1.policy import Policy
from vr1.rollout import Sampling


@dataclass(frozen=True, kw_only=True)
class Case:
    """One configuration of a step.

    Attributes:
        variant: how weights are held.
        prompts: prompts of a step.
        group: completions of each.
        tokens: completion tokens of each step, one entry a step: every completion has exactly as many.
    """

    variant: Variant
    prompts: int
    group: int
    tokens: Sequence[int]

    @property
    def name(self) -> str:
        """For tables."""
        tokens = "/".join(map(str, dict.fromkeys(self.tokens)))
        return f"{self.variant.name}, B {self.prompts}, G {self.group}, {tokens} tokens"


_NF4, _BF16 = Variant(lora=True, nf4=True, recompute=True), Variant(lora=True, recompute=True)
CASES = (
    Case(variant=_BF16, prompts=4, group=8, tokens=(128, 128, 128)),
    Case(variant=_NF4, prompts=1, group=8, tokens=(272, 272)),
    Case(variant=_NF4, prompts=1, group=4, tokens=(272, 272)),
    Case(variant=replace(_BF16, recompute="auto"), prompts=4, group=8, tokens=(128, 128, 128)),
    # Steps of unlike sizes: what the allocator reserves beyond what is used.
    Case(variant=_BF16, prompts=4, group=8, tokens=(128, 512, 256, 512, 64, 384)),
)
TINY_CASES = (Case(variant=Variant(lora=True, recompute="auto"), prompts=2, group=2, tokens=(8, 12)),)


def cases(bench: Bench) -> Sequence[Case]:
    """The cases for this device."""
    return CASES if bench.device == "cuda" else TINY_CASES


def run(bench: Bench) -> None:
    """Measure."""
    policy, variant = None, None
    for number, case in enumerate(cases(bench)):
        if bench.has(case.name):
            continue
        if case.variant != variant:
            policy = None
            bench.free()
        with bench.part(case.name):
            policy, variant = policy or random_policy(bench, case.variant), case.variant
            bench.record(**{case.name: step(bench, case, policy)})
            if number == 0 and bench.device == "cuda":
                bench.record(kernels=step(bench, case, policy, profiled=True)["kernels"])


class RandomModule(GRPOModule):
    """`GRPOModule` on weights that are in memory already, with as many tokens as each step of the case asks for."""

    def __init__(self, made: Policy, tokens: Sequence[int], **settings: Any) -> None:
        super().__init__(**settings)
        # In a list, since the policy is to be a part of the module under its own name alone.
        self._made, self._tokens = [made], tokens

    def configure_model(self) -> None:
        """Take the policy that was made on the device."""
        [self.policy] = self._made
        super().configure_model()

    def on_train_end(self) -> None:
        """Let go of the policy: Lightning moves what a module holds to the host when a training ends."""
        self.policy, self.reference = torch.nn.Identity(), None  # type: ignore[assignment]
        self._made.clear()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the length of this step's completions."""
        super().on_train_batch_start(batch, batch_idx)
        self.sampling = replace(self.sampling, max_new_tokens=self._tokens[batch_idx])


class _Watch(L.Callback):
    """Seconds and parts of each step, and memory."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.started = bench, 0.0
        self.steps: list[dict[str, float]] = []
        self.before: dict[str, float] = {}

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        """Start the clock."""
        self.bench.synchronize()
        self.before, self.started = dict(module.training_state.timer.seconds), time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        """Stop it."""
        self.bench.synchronize()
        seconds = time.perf_counter() - self.started
        parts = {
            name: value - self.before.get(name, 0.0) for name, value in module.training_state.timer.seconds.items()
        }
        row = {"seconds": seconds, **parts, "policy": seconds - sum(parts.values()), **self._memory()}
        if module.policy.recomputation is not None:
            row["recomputed_layers"] = module.policy.recomputation.recomputed
        self.steps.append(row)

    def _memory(self) -> dict[str, float]:
        if self.bench.device != "cuda":
            return {}
        return {
            "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
            "reserved_gb": torch.cuda.max_memory_reserved() / 1e9,
        }


class _Profile(L.Callback):
    """The kernels of the last step's training pass: forward and backward of the policy."""

    def __init__(self, module: GRPOModule, steps: int) -> None:
        self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        forward = module._forward

        def profiled(*inputs: Any) -> Any:
            if module.trainer.global_step == steps - 1:
                self.profile.start()
            return forward(*inputs)

        module._forward = profiled  # type: ignore[method-assign]
        self.steps = steps

    def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any) -> None:
        """End the profile."""
        if trainer.global_step == self.steps - 1:
            torch.cuda.synchronize()
            self.profile.stop()


def step(bench: Bench, case: Case, policy: Policy, profiled: bool = False) -> dict[str, Any]:
    """Train the steps of one case; with the kernels of the last training pass, whose times then are not of use."""
    bench.free()
    if bench.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    L.seed_everything(0, verbose=False)
    module = RandomModule(
        policy,
        case.tokens,
        policy=source_of(bench, case.variant),
        sampling=Sampling(group_size=case.group, max_new_tokens=max(case.tokens)),
        loss=GRPO(kl_coef=0.1),
        max_prompt_tokens=32768,
        optimizer=partial(torch.optim.AdamW, lr=1e-5, fused=bench.device == "cuda"),
    )
    loader = DataLoader(
        records(bench, case.prompts * len(case.tokens)),  # type: ignore[arg-type]
        batch_size=case.prompts,
        collate_fn=module.encoder,
    )
    watch = _Watch(bench)
    profile = _Profile(module, 2) if profiled else None
    trainer = L.Trainer(
        accelerator=bench.accelerator,
        devices=1,
        precision=bench.precision,
        max_steps=2 if profiled else len(case.tokens),
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watch, *([profile] if profile else [])],
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        trainer.fit(module, loader)
    last = watch.steps[-1]
    tokens = case.prompts * case.group * case.tokens[-1]
    prompt = int(module.encoder(records(bench, 1)).tokens.shape[1])
    found = {
        "steps": watch.steps,
        "tokens_per_second": tokens / last["seconds"],
        "prompt_tokens": prompt,
        "layers": len(policy.base.model.language_model.layers),
    }
    # Such as of a graph that could not be captured.
    if said := sorted({str(one.message).splitlines()[0] for one in caught if "vr1" in str(one.filename)}):
        found["warnings"] = said
    return found | ({"kernels": longest_kernels(profile.profile)} if profile else {})
