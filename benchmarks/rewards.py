"""Time of a reward: parsing, matching and rewarding a completion of 1, 10 and 100 boxes.

    python benchmarks/rewards.py

Completions are the true boxes, shifted at random, as Qwen2.5-VL writes them; the rewards are the paper's. Prints a
markdown table of processor time; ``--json FILE`` writes it as numbers.
"""

import json
import statistics
import time
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli

from vr1.detections import read_detections
from vr1.families import Qwen25VL
from vr1.rewards import Reward
from vr1.runs.tables import markdown_table
from vr1.types import Targets

SIZE = (1000, 1000)
NAMES = ("cat", "dog", "traffic light", "person")


def measure(boxes: int, completions: int, rounds: int) -> dict[str, float]:
    """Milliseconds per completion, by part: medians over the rounds."""
    rng = np.random.default_rng(boxes)
    family, reward = Qwen25VL(), Reward()
    corners = rng.uniform(0, 900, (completions, boxes, 2))
    true = np.concatenate([corners, corners + rng.uniform(20, 99, corners.shape)], axis=-1)
    written = np.clip(np.round(true + rng.normal(0, 4, true.shape)), 0, 999)
    labels = [tuple(NAMES[number] for number in rng.integers(0, len(NAMES), boxes)) for _ in range(completions)]
    texts = [family.write(shown, names) for shown, names in zip(written, labels, strict=True)]
    targets = [Targets(boxes_xyxy=shown, labels=names) for shown, names in zip(true, labels, strict=True)]
    times: dict[str, list[float]] = {"read": [], "match": [], "reward": []}
    for _ in range(rounds):
        started = time.process_time()
        found = [read_detections(text, family, SIZE, SIZE) for text in texts]
        read = time.process_time()
        matches = [reward.matcher(*pair) for pair in zip(found, targets, strict=True)]
        matched = time.process_time()
        for term in reward.terms.values():
            term.scores(matches, reward.criterion)
        ended = time.process_time()
        for part, seconds in zip(times, (read - started, matched - read, ended - matched), strict=True):
            times[part].append(1e3 * seconds / completions)
    assert min(match.overlap.size for match in matches) > 0
    return {part: statistics.median(values) for part, values in times.items()}


def main(
    boxes: list[int] = [1, 10, 100],  # noqa: B006 - jsonargparse shows list defaults, none is changed
    completions: int = 64,
    rounds: int = 5,
    json_file: Path | None = None,
) -> None:
    """Measure and print.

    Args:
        boxes: boxes of a completion, and of its image.
        completions: completions rewarded together.
        rounds: repetitions, of which the median counts.
        json_file: file for the figures.
    """
    found = {number: measure(number, completions, rounds) for number in boxes}
    parts = [*next(iter(found.values()))]
    rows = []
    for number, times in found.items():
        total = sum(times.values())
        shown = (*(times[part] for part in parts), total, total * completions / 1e3)
        rows.append([str(number), *(f"{value:.3f}" for value in shown)])
    head = ["boxes", *(f"{part}, ms" for part in parts), "sum, ms", f"{completions} completions, s"]
    print(markdown_table(head, rows))
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
