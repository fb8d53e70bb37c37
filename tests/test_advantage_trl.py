"""From completions to the gradient against TRL's `GRPOTrainer`: rewards, advantages and loss of the same completions.

TRL makes the prompts of the same images and questions itself. Its epsilon is the default here. The extra `bench` of
pyproject.toml installs it.
"""

import pytest
import torch

from tests.test_losses_trl import LIMIT, SETTINGS, TEMPERATURE, trainer_of
from vr1.advantage import GroupAdvantage, RewardedGroups
from vr1.losses import GRPO, GSPO, DrGRPO, PolicyTerms, TokenMean
from vr1.policy.reference import Reference
from vr1.rewards import Reward, RewardTerm
from vr1.rollout.generate import decode_texts
from vr1.types import Detections, Targets, as_boxes

trl = pytest.importorskip("trl", reason="TRL is not installed (extra `bench`)")

WEIGHTS = {"letters": 1.0, "length": 0.3}
# Advantage and loss here, and what they are called there.
PAIRS = {
    "group": (GroupAdvantage(), GRPO(**SETTINGS), {"loss_type": "grpo", "scale_rewards": "group"}),
    "batch": (GroupAdvantage(scale="batch"), TokenMean(**SETTINGS), {"loss_type": "bnpo", "scale_rewards": "batch"}),
    "none": (
        GroupAdvantage(scale="none"),
        DrGRPO(LIMIT, **SETTINGS),
        {"loss_type": "dr_grpo", "scale_rewards": "none"},
    ),
    "terms": (
        GroupAdvantage(normalise="terms"),
        GSPO(**SETTINGS),
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "multi_objective_aggregation": "normalize_then_sum",
        },
    ),
}


def share_of_letters(text):
    return sum(map(str.isalpha, text)) / max(len(text), 1)


def length(text):
    return len(text) / 10


class Letters(RewardTerm):
    def score(self, match, criterion):
        return share_of_letters(match.detections.completion)


class Length(RewardTerm):
    def score(self, match, criterion):
        return length(match.detections.completion)


def function_of(score, given):
    """A reward as TRL calls it, which stores what it has given."""

    def reward(completions, **_):
        given[score.__name__] = [score(message["content"]) for [message] in completions]
        return given[score.__name__]

    reward.__name__ = score.__name__
    return reward


def rewarded(texts, shape):
    """The groups of completions with their rewards, by the reward that a module calls."""
    nothing = Targets(boxes_xyxy=as_boxes([]), labels=())
    answers = [
        Detections(
            boxes_xyxy=as_boxes([]),
            labels=(),
            scores=torch.zeros(0).double().numpy(),
            well_formed=False,
            valid=False,
            completion=text,
        )
        for text in texts
    ]
    reward = Reward(terms=[Letters(), Length()], weights=WEIGHTS)
    output = reward(answers, [nothing] * len(answers))
    return RewardedGroups(
        total=output.total.reshape(shape),
        terms={name: scores.reshape(shape) for name, scores in output.terms.items()},
        weights=reward.weights,
        matches=output.matches,
        criterion=reward.criterion,
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("advantage", "loss", "settings"), PAIRS.values(), ids=PAIRS)
def test_rewards_advantages_and_gradients_are_trls(
    source, prompts, ragged_completions, tmp_path, monkeypatch, advantage, loss, settings
):
    tokens, mask = ragged_completions
    # A group of equal completions, whose advantages are 0.
    tokens[1], mask[1] = tokens[1, 3].clone(), mask[1, 3].clone()
    batch, group, _ = tokens.shape
    policy = source.load().eval()
    texts = decode_texts(source.processor().tokenizer, tokens.flatten(0, 1), mask.flatten(0, 1), prompts)
    groups = rewarded([text for row in texts for text in row], (batch, group))
    advantages = advantage(groups).answers
    log_probs, _ = policy.log_probs(prompts, tokens, mask, TEMPERATURE)
    value, _ = loss(
        PolicyTerms(
            log_probs=log_probs,
            old_log_probs=log_probs.detach(),
            reference_log_probs=Reference(policy).log_probs(prompts, tokens, mask, TEMPERATURE),
            advantages=advantages,
            mask=mask,
        )
    )
    value.backward()

    settings = {**settings, "reward_weights": [*WEIGHTS.values()]}
    their_rewards = {}
    functions = [function_of(score, their_rewards) for score in (share_of_letters, length)]
    trainer = trainer_of(source, tmp_path, settings, functions)
    trainer.current_gradient_accumulation_steps = 1
    rows = [row[present].tolist() for row, present in zip(tokens.flatten(0, 1), mask.flatten(0, 1), strict=True)]
    questions = [row[present].tolist() for row, present in zip(prompts.tokens, prompts.mask, strict=True)]
    asked = [question for question in questions for _ in range(group)]
    # What it samples; everything after that is TRL's.
    monkeypatch.setattr(
        trainer, "rollout_func", lambda *_: {"prompt_ids": asked, "completion_ids": rows, "logprobs": None}
    )
    model = trainer.model.train()
    inputs = [
        {"prompt": [{"role": "user", "content": instruction}], "image": record.image}
        for record, instruction in zip(prompts.records, prompts.instructions, strict=True)
        for _ in range(group)
    ]
    given = trainer._generate_and_score_completions(inputs)
    theirs = trainer._compute_loss(model, given)
    theirs.backward()

    logged = trainer._metrics["train"]
    for ours, theirs_of_term in zip(groups.terms.values(), their_rewards.values(), strict=True):
        assert theirs_of_term == pytest.approx(ours.flatten().tolist())
    assert logged["reward"][-1] == pytest.approx(float(groups.total.mean()))
    assert given["advantages"].tolist() == pytest.approx(advantages.flatten().tolist(), rel=1e-4, abs=1e-5)
    assert advantages[1].tolist() == [0.0] * group
    assert float(advantages.abs().max()) > 0.1
    assert logged["kl"][-1] == pytest.approx(0.0, abs=1e-6)
    assert float(value.detach()) == pytest.approx(float(theirs.detach()), rel=1e-4, abs=1e-5)
    gradients = dict(model.named_parameters())
    largest = max(float(parameter.grad.abs().max()) for parameter in gradients.values())
    assert largest > 1e-4
    for name, parameter in policy.network.named_parameters():
        difference = float((parameter.grad - gradients[name].grad).abs().max())
        assert difference < 1e-4 * largest, name
