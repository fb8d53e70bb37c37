"""TRL's ``GRPOTrainer`` on the same weights, images and lengths as the first case of ``training``."""

import tempfile
import time
from typing import Any

import torch

from gpu_steps.models import available, encoder, random_policy, records, source_of
from gpu_steps.run import Bench, SkippedError
from gpu_steps.training import Case, cases


def run(bench: Bench) -> None:
    """Measure."""
    for package in ("trl", "datasets"):
        if not available(package):
            raise SkippedError(f"{package} is not installed")
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    case = cases(bench)[0]
    prompts = encoder(bench)
    shown = records(bench, case.prompts * len(case.tokens))
    rows = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": prompts.family.instruction(one.categories)}] for one in shown],
            "image": [one.image for one in shown],
        }
    )
    policy = random_policy(bench, case.variant)
    seconds: list[float] = []

    class Clock(TrainerCallback):
        """Seconds of each step."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            bench.synchronize()
            seconds.append(-time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            bench.synchronize()
            seconds[-1] += time.perf_counter()
            # A budget that ends in a later step leaves what was measured.
            bench.record(**_found(bench, case, seconds))

    if bench.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=policy.network,
            reward_funcs=lambda completions, **_: [float(index % 2) for index in range(len(completions))],
            args=GRPOConfig(
                output_dir=folder,
                per_device_train_batch_size=case.prompts * case.group,
                num_generations=case.group,
                max_completion_length=case.tokens[0],
                max_steps=min(2, len(case.tokens)),
                beta=0.1,
                loss_type="grpo",
                learning_rate=1e-5,
                optim="adamw_torch_fused" if bench.device == "cuda" else "adamw_torch",
                max_grad_norm=1.0,
                use_cpu=bench.device == "cpu",
                bf16=bench.device == "cuda",
                gradient_checkpointing=bool(case.variant.recompute),
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=rows,
            processing_class=source_of(bench, case.variant).processor(),
            callbacks=[Clock()],
        )
        trainer.train()


def _found(bench: Bench, case: Case, seconds: list[float]) -> dict[str, Any]:
    found: dict[str, Any] = {"case": case.name, "step_seconds": seconds}
    if bench.device == "cuda":
        found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    ours = bench.results.get("training", {}).get(case.name)
    if isinstance(ours, dict):
        found["trl_over_vr1"] = seconds[-1] / ours["steps"][-1]["seconds"]
    return found
