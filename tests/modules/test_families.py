"""Families without an architecture of their own: a whole GRPO step and an evaluation of a tiny model."""

import pytest
import torch

from tests.policy.tiny_models import write_tiny
from tests.trainers import trainer
from vr1.data import SceneDataModule, SceneStyle
from vr1.families import Gemma
from vr1.modules.grpo import GRPOModule
from vr1.policy import PolicySource
from vr1.rewards import Reward, RewardTerm
from vr1.rollout import Sampling


class Lottery(RewardTerm):
    """A reward that an untrained model earns, differently by every completion."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def score(self, match, criterion):
        self.calls += 1
        return (self.calls * 7919 % 13) / 13


@pytest.mark.parametrize(("kind", "family"), [("gemma3", Gemma)])
@pytest.mark.filterwarnings("ignore:policy")
def test_a_step_and_an_evaluation(kind, family, tmp_path):
    write_tiny(kind, tmp_path / "model")
    module = GRPOModule(
        policy=PolicySource(path=str(tmp_path / "model")),
        reward=Reward(terms={"lottery": Lottery()}),
        sampling=Sampling(group_size=3, max_new_tokens=8),
        evaluation=Sampling(group_size=1, temperature=0.0, max_new_tokens=8),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    module.configure_model()
    assert type(module.family) is family
    before = [weight.detach().clone() for weight in module.policy.parameters()]
    data = SceneDataModule(SceneStyle(), train_scenes=2, val_scenes=2, test_scenes=2, batch_size=2, num_workers=0)
    fit = trainer(tmp_path, max_steps=1, limit_val_batches=1)
    fit.fit(module, data)
    assert fit.global_step == 1
    changed = [not torch.equal(old, new) for old, new in zip(before, module.policy.parameters(), strict=True)]
    assert sum(changed) > len(changed) / 2
    assert "val/map" in fit.callback_metrics
    predictions = trainer(tmp_path).predict(module, data)
    assert sum(map(len, predictions)) == 2
