# %% [markdown]
# # Your photographs on a laptop
#
# A few dozen photographs with boxes, the model that is part of vr1, and a CPU: it learns to find one kind of object in
# about two minutes of training. The model has 4M parameters and has never seen a photograph, so this shows the method,
# not what it can reach; the last section says what to change for a real model.
#
# The folder has the images and a COCO json, as `configs/raccoon.yaml` takes it. YOLO, VOC and other formats have data
# modules of their own; they are described in the documentation under "Your data and its formats".

# %%
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything

from callbacks import BeforeAfter, Export, Gallery, Progress
from vr1 import GRPO, BoxAdvantage, CocoDataModule, Criterion, Detector, GRPOModule, Reward, Sampling
from vr1.drawing import draw_grid, draw_tile
from vr1.modules.warm_start import WarmStart

PHOTOS = Path("photos")
OUT = Path("runs/photographs")
STEPS, WARM_STEPS, BATCH = 100, 25, 16

# %% [markdown]
# ## Look at the data first
#
# `python -m vr1 check --config configs/raccoon.yaml --data.root photos --out checked` reads everything once and
# reports faulty files. Here are the first images with their true boxes, as the trainer will see them.

# %%
data = CocoDataModule(PHOTOS, batch_size=BATCH, eval_batch_size=BATCH, num_workers=0)
records = data.build("train")
print(f"{len(records)} images; the first shows {records[0].labels} in {records[0].image_size}")

# %% [markdown]
# ## What the model finds before training
#
# Nothing: it knows drawn shapes only. A `Detector` is a model that is asked about one image.

# %%
before = Detector.load(max_new_tokens=128)
answer = before.answer(records[0])
print(answer.instruction)
print(answer.completion)

# %% [markdown]
# ## Train
#
# A model that finds nothing earns no reward, and learns nothing from it. So the first steps are supervised: the true
# boxes, written as the model would write them. Then it answers each question eight times, and what is better than the
# other answers of its group becomes more likely; `BoxAdvantage` compares box by box. The criterion pays for every bit
# of overlap, since a beginner has few boxes that reach a threshold.

# %%
seed_everything(0)
module = GRPOModule(
    sampling=Sampling(group_size=8, max_new_tokens=128),
    evaluation=Sampling(group_size=1, temperature=0.0, max_new_tokens=128),
    warm_start=WarmStart(steps=WARM_STEPS, lr=2e-4),
    advantage=BoxAdvantage(),
    reward=Reward(criterion=Criterion(xi0=0.5, xi1=0.0, xi2=1.0)),
    loss=GRPO(kl_coef=0.0),
    optimizer=partial(torch.optim.AdamW, lr=3e-5, weight_decay=0.0),
)
trainer = Trainer(
    accelerator="cpu",
    max_steps=STEPS,
    max_epochs=-1,
    val_check_interval=max(1, STEPS // 4),
    check_val_every_n_epoch=None,
    num_sanity_val_steps=-1,
    gradient_clip_val=1.0,
    log_every_n_steps=1,
    enable_model_summary=False,
    enable_checkpointing=False,
    logger=False,
    callbacks=[Progress(), Gallery(), BeforeAfter(), Export()],
    default_root_dir=OUT,
)
trainer.fit(module, data)

# %% [markdown]
# `val/map_50` is the figure to watch: the average precision at an overlap of 0.5. `val/map` is the mean over overlaps
# from 0.5 to 0.95, and small models with few images stay low there.

# %%
for name in ("val/map_50", "val/map", "val/map_ranked"):
    print(name, round(float(trainer.callback_metrics[name]), 3))

# %% [markdown]
# ## Look at what it finds now
#
# True boxes are dashed; predicted ones are green from an overlap of 0.75, orange from 0.5, red below.

# %%
after = Detector.load(str(OUT / "model"), max_new_tokens=128)
held_out = data.build("val")
predictions = [after.answer(held_out[row]) for row in range(min(6, len(held_out)))]
sheet = draw_grid([draw_tile(prediction) for prediction in predictions], columns=3, title="after training")
sheet.save(OUT / "found.png")
sheet

# %% [markdown]
# `python -m vr1 show --model vr1/embedded runs/photographs/model` opens a page where you drop photographs of your own
# and see both models side by side.
#
# ## With a real model
#
# On a GPU, take a model that knows photographs: it needs no warm start.
#
# ```bash
# python -m vr1 fit --config configs/raccoon.yaml --data.root photos \
#     --model.policy.path Qwen/Qwen2.5-VL-3B-Instruct --model.policy.dtype bfloat16 \
#     --model.policy.max_pixels 401408 --model.policy.lora.rank 16 --model.policy.gradient_checkpointing true \
#     --model.optimizer.lr 2e-5 --model.warm_start null
# ```
