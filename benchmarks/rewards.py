"""Time of a reward: parsing, matching and rewarding a completion of 1, 10 and 100 boxes, and credit for each box.

    python benchmarks/rewards.py

Completions are the true boxes, shifted at random, as Qwen2.5-VL writes them, in groups of eight to one image; the
rewards are the paper's, the advantages those of `vr1.advantage.BoxAdvantage`, to the last token. Prints a markdown
table of processor time; ``--json FILE`` writes it as numbers.
"""

import itertools
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli

from vr1.advantage import BoxAdvantage, RewardedGroups
from vr1.detections import read_detections, token_ends
from vr1.families import Qwen25VL
from vr1.policy import PolicySource
from vr1.rewards import Reward
from vr1.runs.tables import markdown_table
from vr1.types import Targets

SIZE = (1000, 1000)
GROUP = 8
NAMES = ("cat", "dog", "traffic light", "person")


def measure(boxes: int, completions: int, rounds: int) -> dict[str, float]:
    """Milliseconds per completion, by part: medians over the rounds."""
    rng = np.random.default_rng(boxes)
    family, reward = Qwen25VL(), Reward()
    corners = rng.uniform(0, 900, (completions // GROUP, boxes, 2)).repeat(GROUP, axis=0)
    true = np.concatenate([corners, corners + rng.uniform(20, 99, corners.shape)], axis=-1)
    written = np.clip(np.round(true + rng.normal(0, 4, true.shape)), 0, 999)
    own = [tuple(NAMES[number] for number in rng.integers(0, len(NAMES), boxes)) for _ in range(completions // GROUP)]
    labels = [names for names in own for _ in range(GROUP)]
    texts = [family.write(shown, names) for shown, names in zip(written, labels, strict=True)]
    targets = [Targets(boxes_xyxy=shown, labels=names) for shown, names in zip(true, labels, strict=True)]
    tokenizer = PolicySource().processor().tokenizer
    tokens = [tokenizer(text)["input_ids"] for text in texts]
    longest = max(map(len, tokens))
    times: dict[str, list[float]] = {"read": [], "match": [], "reward": [], "credit": []}
    for _ in range(rounds):
        started = time.process_time()
        found = [read_detections(text, family, SIZE, SIZE) for text in texts]
        read = time.process_time()
        matches = [reward.matcher(*pair) for pair in zip(found, targets, strict=True)]
        matched = time.process_time()
        output = reward.score(matches)
        rewarded = time.process_time()
        groups = RewardedGroups(
            total=output.total.view(-1, GROUP),
            terms={name: scores.view(-1, GROUP) for name, scores in output.terms.items()},
            weights=reward.weights,
            matches=matches,
            criterion=reward.criterion,
        )
        ends = [tuple(token_ends(tokenizer, row, set())) for row in tokens]
        placed = [replace(match.detections, token_ends=own) for match, own in zip(matches, ends, strict=True)]
        BoxAdvantage()(groups).of_tokens(placed, longest)
        ended = time.process_time()
        moments = (started, read, matched, rewarded, ended)
        for part, (first, last) in zip(times, itertools.pairwise(moments), strict=True):
            times[part].append(1e3 * (last - first) / completions)
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
        completions: completions rewarded together, a multiple of eight.
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
