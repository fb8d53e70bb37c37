"""What ``vr1 plan`` predicts for the steps that were trained, against their measured peak."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from grpo_step.shapes import config_of

from gpu_steps.models import source_of
from gpu_steps.run import Bench, SkippedError
from gpu_steps.training import Case, cases


def run(bench: Bench) -> None:
    """Compare."""
    for case in cases(bench):
        with bench.part(case.name):
            predicted = predicted_bytes(bench, case) / 1e9
            found: dict[str, Any] = {"predicted_gb": predicted}
            measured = bench.results.get("training", {}).get(case.name)
            # What ``auto`` does not recompute fills the memory that is free, and is no part of the prediction.
            predictable = case.variant.recompute != "auto" and isinstance(measured, dict)
            if predictable and "peak_gb" in measured["steps"][-1]:
                peak = measured["steps"][-1]["peak_gb"]
                found |= {"measured_gb": peak, "predicted_over_measured": predicted / peak}
            bench.record(**{case.name: found})


def predicted_bytes(bench: Bench, case: Case) -> float:
    """The plan's peak for one case, read from a folder that holds the configuration and no weights."""
    try:
        from vr1.commands.plan.needs import Needs
        from vr1.commands.plan.predict import predict
    except ImportError as error:
        raise SkippedError(f"the plan cannot be imported ({error})") from error
    source = source_of(bench, case.variant)
    processor = source.processor()
    with tempfile.TemporaryDirectory() as folder:
        config_of("24m" if bench.shape == "tiny" else bench.shape, processor.tokenizer).save_pretrained(folder)
        processor.save_pretrained(folder)
        settings = {name: getattr(source, name) for name in source.__dataclass_fields__} | {"path": str(Path(folder))}
        needs = Needs(
            policy=type(source)(**settings),
            prompts=case.prompts,
            group_size=case.group,
            completion_tokens=max(case.tokens),
            max_prompt_tokens=32768,
            reference=True,
            optimizer=partial(torch.optim.AdamW, lr=1e-5),
            precision=bench.precision,
            categories=2,
        )
        return predict(needs).peak
