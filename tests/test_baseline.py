"""Twenty steps of training come out as they did when they were committed.

Where they do not and should not, read the differences first, then write the new ones: ``python -m tests.baseline``.
"""

import json

import pytest

from tests.baseline import FILE, run

# Another processor or version of torch rounds otherwise; how much a few units in the last place of the weights come to
# is written in the file.
ROOM, LEAST = 100, 1e-5


@pytest.fixture(scope="module")
def runs():
    committed = json.loads(FILE.read_text())
    return committed, run(committed["seed"])


def test_the_same_tokens_are_sampled_and_every_step_logs_the_same(runs):
    committed, (steps, _) = runs
    for number, (step, then) in enumerate(zip(steps, committed["steps"], strict=True), start=1):
        differences = [
            f"{name} is {step.get(name)} and was {value}"
            for name, value in then.items()
            if name != "tokens" and abs(step.get(name, float("inf")) - value) > ROOM * committed["spread"][name] + LEAST
        ]
        if step["tokens"] != then["tokens"]:
            differences.append("other tokens were sampled")
        assert not differences, f"step {number}: {', '.join(differences)}"


def test_the_weights_end_with_the_same_norms(runs):
    committed, (_, norms) = runs
    assert norms.keys() == committed["norms"].keys()
    for name, norm in norms.items():
        assert norm == pytest.approx(committed["norms"][name], abs=ROOM * committed["spread"]["norms"] + LEAST), name
