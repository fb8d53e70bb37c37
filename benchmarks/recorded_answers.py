"""The evaluation of recorded answers, as many as COCO's validation set has: 5,000 answers, 36,000 true boxes.

    python benchmarks/recorded_answers.py

Makes the answers (boxes of 80 categories, randomly moved, renamed, left out and invented, each with a score), runs
``python -m vr1 score --coco`` on them, and compares all COCO metrics with those of pycocotools on the written results.
Prints seconds of wall time and of processor time (which does not depend on other jobs of the machine), peak memory, the
largest difference, and how long pycocotools and faster-coco-eval (which vr1 uses) take for the metrics.
"""

import contextlib
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli

CATEGORIES = 80
FIGURES = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")
FIGURES += ("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large")


def write(path: Path, images: int, boxes: int) -> None:
    """Write the answers, one per line, in the format of Qwen2.5-VL."""
    rng = np.random.default_rng(0)
    names = [f"kind {number}" for number in range(CATEGORIES)]
    owners = np.sort(rng.integers(0, images, boxes))
    counts = np.bincount(owners, minlength=images)
    with path.open("w", encoding="utf-8") as file:
        for number, count in enumerate(counts.tolist()):
            corner, side = rng.uniform(0, 400, (count, 2)), rng.lognormal(4, 0.8, (count, 2)).clip(4, 230)
            true = np.concatenate([corner, corner + side], axis=1).round(2)
            labels = [names[row] for row in rng.integers(0, CATEGORIES, count)]
            detected = np.flatnonzero(rng.random(count) > 0.2)
            moved = (true[detected] + rng.normal(0, 0.06, (len(detected), 4)) * np.tile(side[detected], 2)).clip(0, 640)
            extra = rng.uniform(0, 300, (int(rng.poisson(1)), 2))
            extra = np.hstack([extra, extra + np.array([90, 60])])
            found = np.concatenate([moved, extra]).round().astype(int).tolist()
            named = [labels[row] if rng.random() < 0.9 else str(rng.choice(names)) for row in detected]
            named += rng.choice(names, len(extra)).tolist()
            items = [{"bbox_2d": box, "label": label} for box, label in zip(found, named, strict=True)]
            line = {
                "image": f"{number:012d}.jpg",
                "image_id": number,
                "image_size": [640, 640],
                "input_size": [640, 640],
                "categories": names,
                "completion": json.dumps(items),
                "scores": rng.random(len(items)).round(4).tolist(),
                "boxes_xyxy": true.tolist(),
                "labels": labels,
            }
            file.write(json.dumps(line) + "\n")


def evaluated(folder: Path, library: str) -> tuple[list[float], float]:
    """COCO metrics by ``pycocotools`` or ``faster_coco_eval`` from the written json files, and processor seconds."""
    if library == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "ground_truth.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(folder / "results.json")), iouType="bbox")
        started = time.process_time()
        evaluation.evaluate()
        evaluation.accumulate()
        seconds = time.process_time() - started
        evaluation.summarize()
    return list(evaluation.stats[: len(FIGURES)]), seconds


def main(images: int = 5000, boxes: int = 36_000) -> None:
    """Make answers, evaluate them and check the figures.

    Args:
        images: number of answers, one an image.
        boxes: number of true boxes of all images together.
    """
    with tempfile.TemporaryDirectory() as temporary:
        answers, out = Path(temporary) / "answers.jsonl", Path(temporary) / "out"
        write(answers, images, boxes)
        started = time.perf_counter()
        command = [sys.executable, "-m", "vr1", "score", "--completions", str(answers), "--coco", str(out)]
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - started
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = json.loads((out / "metrics.json").read_text())["average"]
        plain, plain_seconds = evaluated(out, "pycocotools")
        _, fast_seconds = evaluated(out, "faster_coco_eval")
        difference = max(abs(found[name] - value) for name, value in zip(FIGURES, plain, strict=True))
        print(
            f"{images:,} answers, {boxes:,} true boxes: {seconds:.1f} s, {used.ru_utime + used.ru_stime:.1f} s of"
            f" processor, peak {used.ru_maxrss / 2**20:.2f} GiB; largest difference from pycocotools {difference:.1e}\n"
            f"evaluation alone: pycocotools {plain_seconds:.1f} s, faster-coco-eval {fast_seconds:.1f} s of processor"
        )


if __name__ == "__main__":
    auto_cli(main)
