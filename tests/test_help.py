"""Every setting of our own explains itself in ``--help``."""

import argparse
import dataclasses
import inspect

import pytest
from jsonargparse import ArgumentParser

import callbacks
from vr1 import data, losses, rewards
from vr1.advantage import BoxAdvantage, GroupAdvantage
from vr1.families import Qwen25VL
from vr1.matching import BoxMatcher
from vr1.modules.grpo import GRPOModule
from vr1.modules.sft import SFTModule
from vr1.policy import Lora, PolicySource
from vr1.rollout import Sampling

OURS = [
    GRPOModule,
    SFTModule,
    PolicySource,
    Lora,
    Sampling,
    BoxAdvantage,
    GroupAdvantage,
    Qwen25VL,
    BoxMatcher,
    rewards.Reward,
    rewards.Criterion,
    rewards.DualFormat,
    rewards.Recall,
    rewards.Precision,
    rewards.AveragePrecision,
    rewards.Completeness,
    rewards.Count,
    rewards.DynamicIou,
    rewards.Iou,
    rewards.LabelAccuracy,
    rewards.Length,
    rewards.ThinkAnswer,
    losses.GRPO,
    losses.TokenMean,
    losses.DrGRPO,
    losses.GSPO,
    losses.CISPO,
    data.SceneDataModule,
    data.SceneStyle,
    data.CocoDataModule,
    data.ImageFolderDataModule,
    data.MixtureDataModule,
    data.OdinwDataModule,
    data.OdinwSet,
    data.ReferringDataModule,
    data.Selection,
    data.VisionR1DataModule,
    data.VocDataModule,
    data.YoloDataModule,
    *(getattr(callbacks, name) for name in callbacks.__all__),
]


def unexplained(kind):
    """Settings of a class whose help is empty."""
    parser = ArgumentParser()
    if dataclasses.is_dataclass(kind):
        parser.add_argument("--it", type=kind)
    else:
        parser.add_class_arguments(kind, "it")
    settings = [action for action in parser._actions if action.dest.startswith("it.")]
    texts = {action.dest: action.help or "" for action in settings if action.help is not argparse.SUPPRESS}
    return [name for name, text in texts.items() if not text.split("(type:")[0].strip()]


def test_silence_is_noticed():
    class Silent:
        """A class.

        Args:
            message: a setting.
        """

        def __init__(self, message: int = 1, silent: int = 2) -> None:
            pass

    assert unexplained(Silent) == ["it.silent"]


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_every_setting_is_explained(kind):
    assert inspect.getdoc(kind), "a class says what it is for"
    assert not unexplained(kind)
