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
STEPS, PRECISION, LEARNING_RATE = 500, "bf16-mixed", "1e-5"


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
# The prediction for the configuration, without weights and without the GPU. `max_pixels` and `group_size` are what to
# lower first; more prompts a step come from `accumulate_grad_batches`, which costs no memory.

# %%
vr1("plan", "--config", "configs/qlora_a100_40gb.yaml", "--gpu", "a100-40gb", "--model.policy.path", MODEL)

# %% [markdown]
# ## Is the data what you think it is?

# %%
vr1("check", "--config", "configs/raccoon.yaml", "--data.root", DATA, "--out", OUT / "checked")

# %% [markdown]
# ## Train
#
# `configs/raccoon.yaml` names the data; these settings replace its embedded model. An interrupted run goes on with
# `--ckpt_path last`.

# %%
vr1(
    *("fit", "--config", "configs/raccoon.yaml", "--data.root", DATA, "--out", OUT),
    *("--model.policy.path", MODEL, "--model.policy.quantize", "nf4", "--model.policy.lora.rank", "16"),
    *("--model.policy.gradient_checkpointing", "true", "--model.policy.max_pixels", "401408"),
    *("--model.policy.dtype", "bfloat16" if PRECISION == "bf16-mixed" else "float32"),
    *("--model.warm_start", "null", "--model.optimizer.lr", LEARNING_RATE),
    *("--trainer.precision", PRECISION, "--trainer.max_steps", STEPS),
    *("--trainer.val_check_interval", max(1, STEPS // 5)),
)

# %% [markdown]
# ## Use it
#
# `model/` has the adapters; `--merge` writes one full model, for vLLM and others.

# %%
run = read_run(OUT)
print(run.comparison.rows)
vr1("export", "--ckpt", run.folder, "--out", OUT / "merged", "--merge")
