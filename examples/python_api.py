"""vr1 from Python, as in a notebook: a module, data and a trainer; a few steps; a picture of the predictions.

python examples/python_api.py --steps 20 --out runs/python_api
"""

from functools import partial
from pathlib import Path

import torch
from jsonargparse import auto_cli
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger

from callbacks import BeforeAfter, Curves, Progress
from vr1.data import SceneDataModule, SceneStyle
from vr1.drawing import draw_grid, draw_tile
from vr1.losses import GRPO
from vr1.modules.grpo import GRPOModule
from vr1.policy import PolicySource
from vr1.rewards import Criterion, DualFormat, Precision, Recall, Reward, RewardTerm
from vr1.rollout import Sampling
from vr1.types import Match


class FewBoxes(RewardTerm):
    """Multiplies by 0.8 for every redundant box: an example of a user's reward."""

    def score(self, match: Match, criterion: Criterion) -> float:
        """The reward of one completion, from its boxes, the true boxes and their assignment."""
        return 0.8 ** max(0, match.num_predicted - match.num_targets)


def train(steps: int = 20, out: Path = Path("runs/python_api"), scenes: int = 64, model: str | None = None) -> Path:
    """Train for some steps and draw the predictions after them.

    Args:
        steps: optimizer steps.
        out: folder of the results.
        scenes: number of validation scenes.
        model: folder or Hugging Face name of a model; None takes the embedded one.

    Returns:
        Path of the picture.
    """
    seed_everything(0)
    module = GRPOModule(
        policy=PolicySource(path=model) if model else PolicySource(),
        reward=Reward(terms=[DualFormat(), Recall(), Precision(), FewBoxes()], weights={"few_boxes": 0.5}),
        loss=GRPO(kl_coef=0.0),
        sampling=Sampling(group_size=8, max_new_tokens=160),
        evaluation=Sampling(group_size=1, temperature=0.0, max_new_tokens=160),
        optimizer=partial(torch.optim.AdamW, lr=4e-5, weight_decay=0.0),
    )
    style = SceneStyle(shapes=("circle", "square", "triangle", "star"), num_objects=(1, 4), tint=0.5, noise=14.0)
    data = SceneDataModule(style=style, train_scenes=400, val_scenes=scenes, test_scenes=8, batch_size=16)
    trainer = Trainer(
        max_steps=steps,
        num_sanity_val_steps=-1,
        val_check_interval=steps,
        check_val_every_n_epoch=None,
        gradient_clip_val=1.0,
        log_every_n_steps=1,
        devices=1,
        logger=CSVLogger(out, name=""),
        default_root_dir=out,
        enable_checkpointing=False,
        callbacks=[Progress(), Curves(), BeforeAfter()],
    )
    trainer.fit(module, data)

    # A prediction holds boxes in image pixels, labels, the answer's text and its rewards.
    predictions = [prediction for batch in trainer.predict(module, data) or [] for prediction in batch]
    print(predictions[0].completion, predictions[0].detections.boxes_xyxy, predictions[0].rewards, sep="\n")
    picture = out / "predictions.png"
    draw_grid([draw_tile(prediction) for prediction in predictions], f"after {steps} steps").save(picture)
    return picture


if __name__ == "__main__":
    print(auto_cli(train, as_positional=False))
