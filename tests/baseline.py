"""Twenty steps of a small training on one thread, as numbers that are committed.

    python -m tests.baseline

runs the training and writes ``tests/baseline.json``. A training whose sampled tokens change when every weight is
changed by a millionth is not written: on another processor, whose products round differently, it might change too.
Further seeds are tried. How far such changes move each number is written too; `tests/test_baseline.py` allows more.
"""

import argparse
import hashlib
import json
import tempfile
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback

from tests.trainers import trainer
from vr1.data import SceneDataModule, SceneStyle
from vr1.losses import GRPO
from vr1.modules.grpo import GRPOModule
from vr1.rollout import Sampling

FILE = Path(__file__).with_name("baseline.json")
STEPS, DISTURBANCES = 20, 3
# What is logged and does not depend on the clock.
GROUPS = ("reward/", "grpo/")


class Record(Callback):
    """What every step logged, the tokens it was made from, and the lengths of the weights and of the gradients."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        gradients = [parameter.grad.norm() for parameter in module.parameters() if parameter.grad is not None]
        self.gradient = float(torch.stack(gradients).norm())

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        rollout = module.training_state.rollout_batches[0]
        tokens = [row[kept].tolist() for row, kept in zip(rollout.tokens, rollout.mask, strict=True)]
        logged = trainer.callback_metrics
        weights = torch.stack([parameter.detach().norm() for parameter in module.parameters()])
        self.steps.append(
            {
                "tokens": hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16],
                **{name: float(logged[name]) for name in sorted(logged) if name.startswith(GROUPS)},
                "gradient_norm": self.gradient,
                "weight_norm": float(weights.norm()),
            }
        )


class Disturb(Callback):
    """Changes every weight by a relative rounding error before training."""

    def __init__(self, seed):
        self.seed = seed

    def on_fit_start(self, trainer, module):
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(1 + 1e-6 * torch.randn(parameter.shape, generator=generator))


def run(seed, disturbed=None):
    """The steps of the training, and the norm of every weight at its end."""
    torch.set_num_threads(1)
    module = GRPOModule(
        sampling=Sampling(group_size=4, temperature=1.2, max_new_tokens=32),
        loss=GRPO(kl_coef=0.1),
        updates_per_rollout=2,
        seed=seed,
        optimizer=partial(torch.optim.AdamW, lr=2e-5, eps=1e-5),
    )
    data = SceneDataModule(
        SceneStyle(num_objects=(1, 2), absent=0.1, noise=0.0, blur=0.0),
        train_scenes=16,
        val_scenes=1,
        batch_size=2,
        num_workers=0,
        seed=seed,
    )
    record = Record()
    with tempfile.TemporaryDirectory() as folder:
        callbacks = [record] if disturbed is None else [record, Disturb(disturbed)]
        settings = {"max_steps": STEPS, "max_epochs": -1, "gradient_clip_val": 1.0}
        trainer(folder, callbacks, **settings).fit(module, data)
    norms = {name: float(parameter.detach().norm()) for name, parameter in module.named_parameters()}
    return record.steps, norms


def main():
    """Find a seed whose training is stable, and write its numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="the first seed that is tried")
    for seed in range(parser.parse_args().seed, 1000):
        steps, norms = run(seed)
        spread = {}
        for disturbed in range(DISTURBANCES):
            others, other_norms = run(seed, disturbed)
            if [step["tokens"] for step in others] != [step["tokens"] for step in steps]:
                print(f"seed {seed}: other tokens after disturbance {disturbed}")
                break
            for step, other in zip(steps, others, strict=True):
                for name in step.keys() - {"tokens"}:
                    spread[name] = max(spread.get(name, 0.0), abs(step[name] - other[name]))
            worst = max(abs(norms[name] - other_norms[name]) for name in norms)
            spread["norms"] = max(spread.get("norms", 0.0), worst)
        else:
            break
    content = {"seed": seed, "torch": torch.__version__, "spread": spread, "steps": steps, "norms": norms}
    FILE.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{FILE}: {STEPS} steps of seed {seed}")


if __name__ == "__main__":
    main()
