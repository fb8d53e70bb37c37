# %% [markdown]
# # A 7B model on one GPU
#
# QLoRA: the base in 4 bits, adapters in full precision. **What was run:** every line of this notebook on a CPU, with
# the embedded model in the place of the 7B, 4-bit weights included; memory is predicted, not measured. **What was
# not:** a GPU, and the 7B itself. The file `benchmarks/gpu.py` measures speed and memory on yours in ten minutes.

# %%
from pathlib import Path

from vr1.cli import main
from vr1.runs import read_run

MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"
DATA = Path("photos")
OUT = Path("runs/qlora")
STEPS, PRECISION, LEARNING_RATE = 500, "bf16-mixed", "2e-5"


def vr1(*arguments: object) -> None:
    """Run one command, and stop the notebook where it fails."""
    if main([str(argument) for argument in arguments]):
        raise SystemExit(f"vr1 {arguments[0]} failed: see above")


# %% [markdown]
# ## Is everything there?

# %%
vr1("doctor")

# %% [markdown]
# ## Does it fit?
#
# `configs/raccoon.yaml` names the data; the other settings replace its embedded model. `plan` predicts their memory,
# without weights and without the GPU, and says what to change if they do not fit. More prompts a step come from
# `accumulate_grad_batches`: their completions are sampled together as far as they fit, and trained on batch by batch.

# %%
SETTINGS = (
    *("--config", "configs/raccoon.yaml", "--data.root", DATA, "--model.policy.path", MODEL),
    *("--model.policy.quantize", "nf4", "--model.policy.lora.rank", "16"),
    *("--model.policy.gradient_checkpointing", "true", "--model.policy.max_pixels", "401408"),
    *("--model.policy.dtype", "bfloat16" if PRECISION == "bf16-mixed" else "float32"),
    *("--model.warm_start", "null", "--model.optimizer.lr", LEARNING_RATE, "--trainer.precision", PRECISION),
)
vr1("plan", *SETTINGS, "--gpu", "a100-40gb")

# %% [markdown]
# ## Is the data what you think it is?

# %%
vr1("check", *SETTINGS, "--out", OUT / "checked")

# %% [markdown]
# ## Train
#
# The same settings again. `--ckpt_path last` resumes an interrupted run.

# %%
validate_every = max(1, STEPS // 5)
vr1("fit", *SETTINGS, "--out", OUT, "--trainer.max_steps", STEPS, "--trainer.val_check_interval", validate_every)

# %% [markdown]
# ## Use it
#
# `model/` has the adapters; `--merge` writes one full model, for vLLM and others.

# %%
run = read_run(OUT)
print(run.comparison.rows)
vr1("export", "--ckpt", run.folder, "--out", OUT / "merged", "--merge")
