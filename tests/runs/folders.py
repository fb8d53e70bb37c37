"""Run folders with the files of a training."""

import csv
import json

from PIL import Image

CONFIG = """
trainer:
  max_steps: 4
  default_root_dir: {folder}
  callbacks:
  - class_path: callbacks.RuleRefinement
    init_args:
      stages:
      - {{name: loose, criterion: {{xi0: 0.5}}}}
      - {{name: "<b>tight</b>", criterion: {{xi0: 0.9}}, at_fraction: 0.5}}
model:
  class_path: vr1.modules.grpo.GRPOModule
  init_args:
    optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: {lr}}}}}
"""


def make_run(folder, *, lr=0.1, last=0.3, galleries=3, size=(900, 500)):
    """A run of four steps with a switch of stages after the second."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder, lr=lr))
    with (folder / "metrics.csv").open("w", newline="") as file:
        rows = csv.DictWriter(file, ["epoch", "step", "reward/total", "rule/stage", "val/map", "my/own"])
        rows.writeheader()
        rows.writerow({"step": 0, "val/map": 0.1})
        for step in range(1, 5):
            rows.writerow({"epoch": 0, "step": step, "reward/total": step / 4, "rule/stage": float(step > 2)})
        rows.writerow({"step": 4, "val/map": last, "my/own": "nan"})
    before, after = ({"step": step, "metrics": {"val/map": value}} for step, value in ((0, 0.1), (4, last)))
    compared = {"before": before, "after": after, "best": None, "best_by": None, "notes": ["a <note>"]}
    (folder / "before_after.json").write_text(json.dumps(compared))
    (folder / "gallery").mkdir()
    for index in range(galleries):
        picture = Image.effect_noise(size, 80).convert("RGB")
        # Noise cannot be compressed, and trying takes time.
        picture.save(folder / "gallery" / f"step_{index * 2:06d}.png", compress_level=1)
    return folder


def add_classes(folder, classes):
    """The classes of the first and the last validation: AP at each of them, and boxes."""
    path = folder / "before_after.json"
    first, last = (
        {"step": step, "figures": {name: {"map": row[part], "objects": row[2]} for name, row in classes.items()}}
        for part, step in enumerate((0, 4))
    )
    path.write_text(json.dumps(json.loads(path.read_text()) | {"classes": {"first": first, "last": last}}))
