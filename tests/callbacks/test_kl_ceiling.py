import warnings

import pytest

from callbacks import KLCeiling
from tests.callbacks.tiny import TinyDetector
from tests.trainers import trainer


class Running(TinyDetector):
    """Logs a KL that a script gives."""

    def __init__(self, kl):
        super().__init__()
        self.kl = kl

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.kl:
            self.log("my/kl", self.kl[self.trainer.global_step])
        return loss


def steps(tmp_path, kl, **settings):
    run = trainer(tmp_path, [KLCeiling(monitor="my/kl", **settings)], max_steps=len(kl) or 1)
    run.fit(Running(kl))
    return run.global_step


def test_warns_once_each_time_it_rises_above(tmp_path):
    with pytest.warns(UserWarning, match="above the ceiling") as told:
        assert steps(tmp_path, [0.1, 0.6, 0.7, 0.1, 0.9, 0.1], ceiling=0.5, patience=3) == 6
    above = [str(item.message) for item in told if "above the ceiling" in str(item.message)]
    assert [text.split(" at step ")[1][0] for text in above] == ["2", "5"]
    assert "my/kl is 0.6 at step 2, above the ceiling of 0.5" in above[0]


def test_ends_training_where_it_stays_above(tmp_path):
    with pytest.warns(UserWarning, match="training ends at step 5: my/kl was above 0.5 for 3 steps in a row"):
        assert steps(tmp_path, [0.1, 0.1, 0.6, 0.7, 0.8, 0.9, 0.9], ceiling=0.5, patience=3) == 5


def test_what_is_no_number_is_not_below(tmp_path):
    with pytest.warns(UserWarning, match="my/kl was above 0.5 for 2 steps in a row"):
        assert steps(tmp_path, [0.1, float("nan"), float("nan"), 0.1], ceiling=0.5, patience=2) == 3


def test_may_only_warn(tmp_path):
    assert steps(tmp_path, [0.6] * 5, ceiling=0.5, patience=0) == 5


def test_below_it_says_nothing(tmp_path):
    with warnings.catch_warnings(record=True) as told:
        assert steps(tmp_path, [0.5] * 3, ceiling=0.5, patience=1) == 3
    assert not [item for item in told if "ceiling" in str(item.message)]


def test_a_metric_that_is_not_logged(tmp_path):
    with pytest.raises(ValueError, match=r"watches 'my/kl', which is not logged: set model\.loss\.kl_coef above 0"):
        steps(tmp_path, [])


@pytest.mark.parametrize("setting", [{"ceiling": 0.0}, {"ceiling": float("nan")}, {"patience": -1}])
def test_bad_settings(setting):
    with pytest.raises(ValueError, match=f"KLCeiling: {next(iter(setting))} is"):
        KLCeiling(**setting)
