"""A few photographs, the embedded model, two minutes: supervised training alone, and followed by rewards.

    python benchmarks/photographs.py --sets '{raccoon: path/to/raccoon, thermal: path/to/thermal}'

Each set is a folder with ``images/``, ``instances_train.json``, ``instances_valid.json`` and, if it has one,
``instances_test.json``. Training is on the first; the images of the others are evaluated together, since there are only
a few dozen. Every run is `configs/raccoon.yaml`: with its warm start of 25 steps and rewards to step 100, or supervised
to the end. Supervised training is taken at its best step, on the mean of the seeds; the rewards at their last. Runs
that are there already are not repeated. Writes ``table.md``.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from grpo_against_sft import run
from jsonargparse import auto_cli

from vr1.runs.tables import markdown_table

METRICS = ("val/map_50", "val/map", "val/map_ranked")
SUPERVISED_STEPS = 125


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Annotations of several splits as one, with new ids.

    Example:
        >>> part = {"images": [{"id": 1}], "annotations": [{"id": 1, "image_id": 1}], "categories": []}
        >>> [image["id"] for image in joined([part, part])["images"]]
        [1, 2]
    """
    images, annotations = [], []
    for part in parts:
        shift_image = max((image["id"] for image in images), default=0)
        shift = max((annotation["id"] for annotation in annotations), default=0)
        images += [{**image, "id": image["id"] + shift_image} for image in part["images"]]
        annotations += [
            {**item, "id": item["id"] + shift, "image_id": item["image_id"] + shift_image}
            for item in part["annotations"]
        ]
    return {**parts[0], "images": images, "annotations": annotations}


def prepare(source: Path, target: Path) -> Path:
    """A folder with the training split, and all other splits as the validation split; the images are linked."""
    target.mkdir(parents=True, exist_ok=True)
    if not (target / "images").exists():
        (target / "images").symlink_to((source / "images").resolve())
    files = [source / f"instances_{split}.json" for split in ("train", "valid", "test")]
    train, *others = [json.loads(file.read_text()) for file in files if file.is_file()]
    (target / "instances_train.json").write_text(json.dumps(train))
    (target / "instances_valid.json").write_text(json.dumps(joined(others)))
    return target


def best_step(runs: list[dict[int, dict[str, float]]]) -> int:
    """The step of the best mean AP50 over the seeds, after the start.

    Example:
        >>> best_step([{0: {"val/map_50": 0.9}, 1: {"val/map_50": 0.2}, 2: {"val/map_50": 0.1}}])
        1
    """
    return max((step for step in runs[0] if step), key=lambda step: sum(found[step]["val/map_50"] for found in runs))


def main(
    sets: dict[str, Path],
    out: Path = Path("runs/photographs"),
    seeds: list[int] = [0, 1, 2],  # noqa: B006 - jsonargparse shows list defaults, none is changed
    threads: int = 1,
) -> None:
    """Train on each set with each method and seed, and write the table.

    Args:
        sets: folder by name of the set.
        out: folder of all runs and of the table.
        seeds: seeds of every method.
        threads: threads of a run.
    """
    supervised = ["--model.warm_start.steps", str(SUPERVISED_STEPS), "--trainer.max_steps", str(SUPERVISED_STEPS)]
    rows = []
    for name, source in sets.items():
        folder = prepare(source, out / name / "data")
        for method, arguments in (("SFT alone", supervised), ("SFT, then rewards", [])):
            runs = []
            for seed in seeds:
                own = out / name / f"{method.replace(', ', '_').replace(' ', '_').lower()}_{seed}"
                given = ["--data.root", str(folder), *arguments]
                runs.append(run("configs/raccoon.yaml", own, 3e-5, seed, given, threads))
            step = best_step(runs) if arguments else max(runs[0])
            if arguments:
                rows.append([name, "before", "0", *_cells([found[0] for found in runs])])
            rows.append([name, method, str(step), *_cells([found[step] for found in runs])])
    table = markdown_table(["set", "method", "step", *METRICS], rows)
    (out / "table.md").write_text(table + "\n")
    print(table)


def _cells(figures: list[dict[str, float]]) -> list[str]:
    columns = [[found[metric] for found in figures] for metric in METRICS]
    return [f"{statistics.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})" for values in columns]


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
