"""What a score per box does to mAP: the constant 0.99 against scores from the log-probs of the box's own tokens.

    python benchmarks/box_scores.py

Evaluates a model on the demo's validation scenes (256 by default), greedily, once; the same answers are then
measured with each kind of score. Beside the score that `vr1.detections` gives (the geometric mean over a box's tokens),
a score that falls with the order of writing, and one drawn by chance, show how much any order of the boxes would do.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import yaml
from jsonargparse import auto_cli

from vr1.data import SceneDataModule, SceneStyle
from vr1.metrics import CocoMetrics
from vr1.modules.grpo import GRPOModule
from vr1.policy import PolicySource
from vr1.rollout import Sampling
from vr1.runs.tables import markdown_table
from vr1.types import SCORE, Prediction

DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"
FIGURES = ("map", "map_50", "map_75")


class _Keep(pl.Callback):
    """Collects the predictions of a validation."""

    def __init__(self) -> None:
        self.predictions: list[Prediction] = []

    def on_validation_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: list, *_: object
    ) -> None:
        self.predictions += outputs


def figures(predictions: list[Prediction], scores: list[np.ndarray]) -> dict[str, float]:
    """COCO metrics of the answers, with other scores of their boxes."""
    metrics = CocoMetrics()
    metrics.update(
        [replace(found.detections, scores=own) for found, own in zip(predictions, scores, strict=True)],
        [found.record for found in predictions],
    )
    return {name: float(value) for name, value in metrics.compute().items()}


def main(model: str | None = None, scenes: int = 256, batch_size: int = 64) -> None:
    """Evaluate once and measure with each kind of score.

    Args:
        model: a model folder; the embedded model where left out.
        scenes: number of validation scenes.
        batch_size: prompts evaluated together.
    """
    settings = yaml.safe_load(DEMO.read_text())["data"]["init_args"]["style"]
    style = SceneStyle(**{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()})
    source = PolicySource() if model is None else PolicySource(path=model)
    module = GRPOModule(
        policy=source,
        evaluation=Sampling(group_size=1, temperature=0.0, max_new_tokens=160),
    )
    data = SceneDataModule(style, val_scenes=scenes, eval_batch_size=batch_size, num_workers=0)
    keep = _Keep()
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(accelerator="auto", devices=1, logger=False, callbacks=[keep], default_root_dir=folder)
        trainer.validate(module, data, verbose=False)
    predictions = keep.predictions
    rng = np.random.default_rng(0)
    kinds = {
        "constant 0.99": [np.full(len(item.detections), SCORE) for item in predictions],
        "log-probs of the box's tokens": [item.detections.scores for item in predictions],
        "order of writing": [np.linspace(1, 0.5, len(item.detections)) for item in predictions],
        "chance": [rng.random(len(item.detections)) for item in predictions],
    }
    print(f"{len(predictions)} scenes, {sum(len(item.detections) for item in predictions)} boxes found")
    measured = {name: figures(predictions, scores) for name, scores in kinds.items()}
    rows = [[name, *(f"{values[figure]:.3f}" for figure in FIGURES)] for name, values in measured.items()]
    print(markdown_table(["scores", *FIGURES], rows))


if __name__ == "__main__":
    auto_cli(main)
