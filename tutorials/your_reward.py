# %% [markdown]
# # A reward of your own, and what it does
#
# The rewards decide what a model learns, and a model finds every way to earn them. So write a reward, and look at what
# it pays for before you train with it. This takes a minute on a CPU.

# %%
import json
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import torch
from lightning.pytorch import Trainer

from callbacks import Progress
from vr1 import (
    GRPO,
    BoxAdvantage,
    Detector,
    GroupAdvantage,
    GRPOModule,
    Reward,
    RewardTerm,
    Sampling,
    SceneDataModule,
)
from vr1.advantage import RewardedGroups
from vr1.detections import read_detections
from vr1.families import Qwen25VL
from vr1.modules.evaluation import parse_completions, targets_of
from vr1.rewards import DualFormat, Precision, Recall
from vr1.rollout import generate
from vr1.types import Targets

SCENES, STEPS = 40, 5

# %% [markdown]
# ## The term
#
# It gets one match: the predicted boxes, the true ones, which of them belong together, and the overlap of each pair.
# This one pays for boxes of about the right size, wherever they are.


# %%
class RightSize(RewardTerm):
    """The mean ratio of the areas of matched boxes, the smaller over the larger; 0 where an object is missed."""

    def score(self, match, criterion):
        """The reward of one answer."""
        if not match.num_targets:
            return float(match.num_predicted == 0)
        true, found = match.targets.boxes_xyxy[match.target], match.detections.boxes_xyxy[match.predicted]
        areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (true, found)]
        ratios = np.minimum(*areas) / np.maximum(np.maximum(*areas), 1e-9)
        return float(ratios.sum()) / match.num_targets


reward = Reward(terms=[DualFormat(), Recall(), Precision(), RightSize()], weights={"right_size": 0.5})

# %% [markdown]
# ## Answers that you write yourself
#
# A perfect one, one beside the object, one with many boxes, an empty one. Does the order of the totals agree with
# yours?

# %%
truth = Targets(boxes_xyxy=np.array([[20.0, 20.0, 60.0, 60.0]]), labels=("star",))
answers = {
    "perfect": '[{"bbox_2d": [20, 20, 60, 60], "label": "star"}]',
    "shifted": '[{"bbox_2d": [30, 30, 70, 70], "label": "star"}]',
    "elsewhere": '[{"bbox_2d": [60, 60, 99, 99], "label": "star"}]',
    "five boxes": json.dumps([{"bbox_2d": [x, 20, x + 40, 60], "label": "star"} for x in range(0, 50, 10)]),
    "nothing": "[]",
}
size = (100, 100)
detections = [read_detections(text, Qwen25VL(), image_size=size, input_size=size) for text in answers.values()]
output = reward(detections, [truth] * len(answers))
print("".ljust(12), *(name.rjust(12) for name in [*output.terms, "total"]))
for row, name in enumerate(answers):
    values = [*(scores[row] for scores in output.terms.values()), output.total[row]]
    print(name.ljust(12), *(f"{float(value):12.3f}" for value in values))

# %% [markdown]
# `right_size` pays the box that is elsewhere nearly as much as the perfect one: the matching gives every object a box,
# however far away. With a large weight a model would learn sizes and forget places. `criterion.hit(overlap)` in the
# term would ask for overlap first.
#
# ## Answers of a model
#
# Only what differs between the answers of one group can be learned. Here eight answers of the embedded model to each
# of some scenes, and how far each term spreads within a group.

# %%
detector = Detector.load(device="cpu")
sampling = Sampling(group_size=8, max_new_tokens=160)
records = SceneDataModule(train_scenes=SCENES).build("train")
spreads, kept = {}, None
for row in range(SCENES):
    prompts = detector.encoder([records[row]])
    [texts] = generate(detector.policy, prompts, sampling, detector.encoder.processor.tokenizer).texts
    found = parse_completions(prompts, texts, detector.family)
    scored = reward(found, targets_of(prompts) * sampling.group_size)
    for name, values in {**scored.terms, "total": scored.total}.items():
        spreads.setdefault(name, []).append(float(values.std()))
    if kept is None and spreads["total"][-1] > 0:
        kept = scored

figure, axis = plt.subplots(figsize=(7, 3))
axis.boxplot(list(spreads.values()), tick_labels=list(spreads), orientation="horizontal")
axis.set_xlabel("standard deviation within a group of 8 answers")
figure.tight_layout()

# %% [markdown]
# A term whose box is at 0 teaches nothing (yet). A term that spreads far more than the others decides the training,
# whatever its weight looks like: `GroupAdvantage(normalise="terms")` scales each by itself.
#
# ## From rewards to advantages
#
# The paper gives every token of an answer one advantage. `BoxAdvantage` also compares each box with those that the
# other answers gave to the same object.

# %%
groups = RewardedGroups(
    total=kept.total[None],
    terms={name: values[None] for name, values in kept.terms.items()},
    weights=reward.weights,
    matches=kept.matches,
    criterion=reward.criterion,
)
print("answers:", GroupAdvantage()(groups).answers.numpy().round(2))
for match, boxes in zip(kept.matches, BoxAdvantage()(groups).boxes, strict=True):
    print(match.detections.labels, boxes.round(2))

# %% [markdown]
# ## Train with it
#
# A few steps of the embedded model; the term is logged as `reward/right_size` and shown in the progress.

# %%
module = GRPOModule(
    reward=reward,
    sampling=sampling,
    advantage=BoxAdvantage(),
    loss=GRPO(kl_coef=0.0),
    optimizer=partial(torch.optim.AdamW, lr=4e-5, weight_decay=0.0),
)
trainer = Trainer(
    accelerator="cpu",
    max_steps=STEPS,
    limit_val_batches=0,
    enable_model_summary=False,
    enable_checkpointing=False,
    logger=False,
    callbacks=[Progress()],
    default_root_dir="runs/your_reward",
)
trainer.fit(module, SceneDataModule(train_scenes=SCENES, val_scenes=1, batch_size=8, num_workers=0))
{name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("reward/")}

# %% [markdown]
# From the command line, put the class in `my_rewards.py`, and its settings in a file, as "Add a reward" in the
# documentation has it:
#
# ```bash
# python -m vr1 fit --config configs/demo.yaml --model.reward my_reward.yaml
# ```
