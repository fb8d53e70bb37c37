"""The sum of terms, its settings, and the reward configurations."""

import sys
import types
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser

from vr1.detections import read_detections
from vr1.families import Qwen25VL
from vr1.matching import BoxMatcher
from vr1.rewards import STAGES, Criterion, DualFormat, Precision, Recall, Reward, RewardTerm
from vr1.types import Targets, as_boxes

CONFIGS = Path(__file__).parents[2] / "configs" / "rewards"


def detections_of(*items):
    text = Qwen25VL().write(as_boxes([box for box, _ in items]), [label for _, label in items])
    return read_detections(text, Qwen25VL(), (100, 100), (100, 100))


def targets_of(*items):
    return Targets(boxes_xyxy=as_boxes([box for box, _ in items]), labels=tuple(label for _, label in items))


CAT, DOG = ([0, 0, 10, 10], "cat"), ([50, 50, 60, 60], "dog")


def settings(reward):
    """Everything that distinguishes one reward from another."""
    terms = {
        name: (
            type(term),
            getattr(term, "check", None),
            getattr(term, "normalise_by", None),
            getattr(term, "fixed", None),
        )
        for name, term in reward.terms.items()
    }
    return terms, reward.weights, vars(reward.matcher), reward.criterion


def parse(*argv):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Reward, "reward")
    arguments = parser.parse_args(argv)
    return (getattr(parser, "instantiate", None) or parser.instantiate_classes)(arguments).reward


def test_sum_of_the_paper():
    output = Reward()(
        [detections_of(CAT, DOG), detections_of(CAT), detections_of()],
        [targets_of(CAT, DOG), targets_of(CAT, DOG), targets_of(CAT, DOG)],
    )
    assert output.terms["dual_format"].tolist() == [1, 1, 1]
    assert output.terms["recall"].tolist() == [1, 0.5, 0]
    assert output.terms["precision"].tolist() == [1, 1, 0]
    assert output.total.tolist() == [3, 2.5, 1]
    assert [len(match.overlap) for match in output.matches] == [2, 1, 0]


def test_a_batch_is_rewarded_as_its_completions_are():
    pairs = [
        (detections_of(CAT, DOG), targets_of(CAT)),
        (detections_of(CAT), targets_of(DOG)),
        (detections_of(), targets_of()),
    ]
    batched = Reward()(*zip(*pairs, strict=True)).total
    single = torch.cat([Reward()([detections], [targets]).total for detections, targets in pairs])
    assert batched.tolist() == single.tolist()


def test_no_completions():
    assert Reward()([], []).total.shape == (0,)


def test_each_completion_is_matched_once():
    class Counting(BoxMatcher):
        calls = 0

        def __call__(self, detections, targets):
            Counting.calls += 1
            return super().__call__(detections, targets)

    Reward(matcher=Counting())([detections_of(CAT)] * 3, [targets_of(CAT)] * 3)
    assert Counting.calls == 3


def test_weights_may_be_zero_or_negative():
    reward = Reward(weights={"recall": 0.0, "precision": -2.0})
    assert reward([detections_of(CAT)], [targets_of(CAT)]).total.tolist() == [1 - 2]
    assert reward.weights == {"dual_format": 1, "recall": 0, "precision": -2}


def test_a_new_criterion_takes_effect():
    reward = Reward()
    loose = ([0, 0, 10, 6], "cat")
    assert reward([detections_of(loose)], [targets_of(CAT)]).terms["precision"].tolist() == pytest.approx([0.6])
    reward.criterion = reward.criterion.at_stage("advanced")
    assert reward([detections_of(loose)], [targets_of(CAT)]).total.tolist() == [1]


def test_names():
    assert list(Reward(terms=[DualFormat(), Recall()]).terms) == ["dual_format", "recall"]
    both = Reward(terms={"all": Precision(), "matched": Precision(normalise_by="matched")}, weights={"all": 3})
    assert both.weights == {"all": 3, "matched": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": {"recal": 1.0}}, "recal names no term; the terms are dual_format, recall, precision"),
        ({"weights": {"recall": float("nan")}}, "recall: nan"),
        ({"terms": [Recall(), Recall()]}, "recall occurs twice; give a mapping"),
        ({"terms": {"total": Recall()}}, "total cannot name"),
        ({"terms": {"a.b": Recall()}}, r"a\.b cannot name"),
        ({"terms": {"keys": Recall()}}, "keys cannot name"),
        ({"terms": []}, "no term"),
    ],
)
def test_wrong_settings_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        Reward(**arguments)


def test_the_terms_are_metrics_of_the_rewards_that_are_added():
    reward = Reward()
    output = reward([detections_of(CAT), detections_of()], [targets_of(CAT), targets_of(CAT)])
    assert not reward.total.update_called, "computing a reward changes no state"
    metrics = reward.update_means(output.total, output.terms)
    assert {name: metric.compute().item() for name, metric in metrics.items()} == {
        "total": 2,
        "dual_format": 1,
        "recall": 0.5,
        "precision": 0.5,
    }
    assert dict(reward.named_terms()) == {name: metric for name, metric in metrics.items() if name != "total"}
    assert reward.state_dict() == {}


def test_paper_yaml_is_the_default():
    assert settings(parse("--reward", str(CONFIGS / "paper.yaml"))) == settings(Reward())


def test_released_yaml():
    terms, _, matcher, criterion = settings(parse("--reward", str(CONFIGS / "released.yaml")))
    assert terms == {
        "dual_format": (DualFormat, "template", None, None),
        "recall": (Recall, None, None, None),
        "precision": (Precision, None, "matched", None),
    }
    assert matcher == vars(BoxMatcher(l1=1, iou=0, giou=1, label=1, overlap="giou", label_rule="ignore"))
    assert criterion == Criterion(strict=True).at_stage("off")


def test_released_adaptive_yaml():
    reward = parse("--reward", str(CONFIGS / "released_adaptive.yaml"))
    beginner = STAGES["beginner"]
    assert reward.terms["recall"].fixed == beginner
    assert reward.criterion == Criterion(xi0=beginner.xi0, xi1=beginner.xi1, xi2=beginner.xi2, strict=True)


def test_a_users_term_by_class_path(monkeypatch):
    class FewBoxes(RewardTerm):
        def __init__(self, halve_after: int = 10) -> None:
            super().__init__()
            self.halve_after = halve_after

        def score(self, match, criterion):
            return 0.5 ** (match.num_predicted / self.halve_after)

    module = types.ModuleType("user_terms")
    FewBoxes.__module__, FewBoxes.__qualname__ = "user_terms", "FewBoxes"
    module.FewBoxes = FewBoxes
    monkeypatch.setitem(sys.modules, "user_terms", module)
    terms = "[{class_path: vr1.rewards.Recall}, {class_path: user_terms.FewBoxes, init_args: {halve_after: 1}}]"
    reward = parse("--reward", "Reward", "--reward.terms", terms, "--reward.weights", "{few_boxes: 2.0}")
    output = reward([detections_of(CAT)], [targets_of(CAT)])
    assert output.terms["few_boxes"].tolist() == [0.5]
    assert output.total.tolist() == [2]
