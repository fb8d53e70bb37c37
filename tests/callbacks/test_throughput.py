"""Shares of a step's time, for a module whose parts take known times."""

import time

import pytest
from lightning.pytorch.callbacks import Callback

from callbacks import Throughput
from tests.callbacks.tiny import TinyDetector
from tests.trainers import trainer
from vr1.errors import UserError
from vr1.modules.state import TrainingState


class Timed(TinyDetector):
    def __init__(self, seconds, tokens=600):
        super().__init__()
        self.training_state, self.parts, self.tokens = TrainingState(), seconds, tokens

    def training_step(self, batch, batch_idx):
        for part in ("rollout", "reward", "reference"):
            if part in self.parts:
                with self.training_state.timer.measure(part):
                    time.sleep(self.parts[part])
        self.training_state.timer.tokens += self.tokens
        time.sleep(self.parts["policy"])
        return super().training_step(batch, batch_idx)


class Logged(Callback):
    def __init__(self):
        self.rows = []

    def on_train_batch_end(self, trainer, *_):
        self.rows.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def fit(tmp_path, module, **settings):
    logged = Logged()
    trainer(tmp_path, [Throughput(), logged], **({"max_steps": 3} | settings)).fit(module)
    return logged.rows


def test_shares_and_rate(tmp_path):
    row = fit(tmp_path, Timed({"rollout": 0.3, "reference": 0.15, "reward": 0.1, "policy": 0.25}))[-1]
    # A busy machine takes longer, never less; so the parts of 0.8 s are at most these.
    assert 0.1 < row["perf/rollout_share"] < 0.6
    assert row["perf/reference_share"] < row["perf/rollout_share"]
    assert row["perf/policy_share"] > 0.1
    assert row["perf/rollout_share"] + row["perf/reference_share"] + row["perf/policy_share"] < 0.99
    assert 20 < row["perf/step_tokens_per_second"] <= 600 / 0.8
    assert 0.05 < row["perf/peak_memory_gib"] < 100


def test_without_a_rollout_the_whole_step_is_the_policy(tmp_path):
    row = fit(tmp_path, Timed({"policy": 0.01}))[-1]
    assert row["perf/rollout_share"] == row["perf/reference_share"] == 0
    assert row["perf/policy_share"] == 1


def test_an_accumulated_step_is_counted_as_a_whole(tmp_path):
    rows = fit(tmp_path, Timed({"policy": 0.1}, tokens=100), accumulate_grad_batches=2, max_steps=2)
    assert "perf/step_tokens_per_second" not in rows[0]
    assert 20 < rows[1]["perf/step_tokens_per_second"] <= 1000


def test_a_module_without_a_timer_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"Throughput requires a module of vr1 .* TinyDetector is none"):
        fit(tmp_path, TinyDetector())
