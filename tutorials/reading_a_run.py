# %% [markdown]
# # Read a run
#
# What a training of rewards looks like, and which figures say that something is wrong. A few steps of the demo, then
# the files in its folder. `report.html` in that folder shows the same on one page.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image

from vr1.cli import main
from vr1.runs import read_run

OUT = Path("runs/reading")
STEPS, VALIDATE_EVERY, VAL_SCENES = 30, 15, 64

# %%
arguments = ["--trainer.max_steps", str(STEPS), "--trainer.val_check_interval", str(VALIDATE_EVERY)]
arguments += ["--data.val_scenes", str(VAL_SCENES), "--out", str(OUT)]
main(["fit", "--config", "configs/demo.yaml", *arguments])
run = read_run(OUT)
print(sorted(path.name for path in run.folder.iterdir()))

# %% [markdown]
# ## Did it get better?
#
# Validation before training and at the end, on images that it was not trained on. `val/map` gives every box one score,
# as the method was published; `val/map_ranked` ranks the boxes by the probabilities of their tokens.

# %%
print((run.folder / "before_after.md").read_text())


# %% [markdown]
# ## The curves
#
# **Rewards** of the rollouts, noisy by nature: look at the trend. If `reward/total` rises and `val/map` does not, the
# model earns the reward in a way that you did not mean.


# %%
def draw(*names: str) -> None:
    """The curves of some metrics, side by side."""
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 2.6))
    for axis, name in zip(axes, names, strict=True):
        steps, values = zip(*run.series[name], strict=True)
        axis.plot(steps, values)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("step")
    figure.tight_layout()


draw("reward/total", "reward/recall", "reward/precision")

# %% [markdown]
# **Groups.** `grpo/zero_variance_groups` is the share of groups whose answers all earn the same: they teach nothing. A
# share that goes to 1 means that the questions are too easy or too hard, or the sampling too cold. `grpo/reward_std`
# is the spread within groups, and `grpo/boxes_with_advantage` the share of boxes that are compared.

# %%
draw("grpo/zero_variance_groups", "grpo/reward_std", "grpo/boxes_with_advantage")

# %% [markdown]
# **Answers.** `grpo/truncated` above some 0.03: raise `sampling.max_new_tokens`, or the model has lost the end of
# the list. `grpo/entropy` that falls to 0 early: all answers become one, lower the learning rate. A sudden jump of
# `grpo/grad_norm` is clipped by `gradient_clip_val`; one jump is nothing, a rising trend is the learning rate.

# %%
draw("grpo/completion_tokens", "grpo/truncated", "grpo/entropy", "grpo/grad_norm")

# %% [markdown]
# **The loss** is near 0 by construction: advantages of a group sum to 0, and the first update's ratios are 1. It says
# nothing about progress.
#
# ## Look at the boxes
#
# The same validation images at every validation: true boxes dashed, predicted ones green from an overlap of 0.75,
# orange from 0.5, red below.

# %%
print([step for step, _ in run.galleries])
Image.open(run.galleries[-1][1])

# %% [markdown]
# ## Compare runs
#
# ```bash
# python -m vr1 compare runs/reading/version_0 runs/demo/version_0
# ```
