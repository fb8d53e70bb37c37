"""vr1: reinforcement learning that teaches vision-language models to find things in images (Vision-R1).

The names below are the public ones: ``from vr1 import GRPOModule``. Each is imported when it is first used, so that
``import vr1`` and ``python -m vr1 --help`` wait for neither torch nor Lightning.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vr1.advantage import BoxAdvantage, GroupAdvantage
    from vr1.data import (
        CocoDataModule,
        ImageFolderDataModule,
        MixtureDataModule,
        OdinwDataModule,
        ReferringDataModule,
        SceneDataModule,
        Selection,
        VisionR1DataModule,
        VocDataModule,
        YoloDataModule,
    )
    from vr1.detector import Detector
    from vr1.errors import UserError
    from vr1.families import CustomFamily, Family
    from vr1.losses import CISPO, GRPO, GSPO, DrGRPO, TokenMean
    from vr1.matching import BoxMatcher
    from vr1.modules.base import DetectionModule
    from vr1.modules.grpo import GRPOModule
    from vr1.modules.sft import SFTModule
    from vr1.policy import Lora, PolicySource
    from vr1.rewards import Criterion, Reward, RewardTerm, Stage
    from vr1.rollout import Sampling
    from vr1.strategies import FullySharded
    from vr1.types import DetectionRecord, Prediction

__version__ = "0.2.0.dev0"

# The module of each public name.
_MODULES = {
    "vr1.advantage": ("BoxAdvantage", "GroupAdvantage"),
    "vr1.data": (
        "CocoDataModule",
        "ImageFolderDataModule",
        "MixtureDataModule",
        "OdinwDataModule",
        "ReferringDataModule",
        "SceneDataModule",
        "Selection",
        "VisionR1DataModule",
        "VocDataModule",
        "YoloDataModule",
    ),
    "vr1.detector": ("Detector",),
    "vr1.errors": ("UserError",),
    "vr1.families": ("CustomFamily", "Family"),
    "vr1.losses": ("CISPO", "GRPO", "GSPO", "DrGRPO", "TokenMean"),
    "vr1.matching": ("BoxMatcher",),
    "vr1.modules.base": ("DetectionModule",),
    "vr1.modules.grpo": ("GRPOModule",),
    "vr1.modules.sft": ("SFTModule",),
    "vr1.policy": ("Lora", "PolicySource"),
    "vr1.rewards": ("Criterion", "Reward", "RewardTerm", "Stage"),
    "vr1.rollout": ("Sampling",),
    "vr1.strategies": ("FullySharded",),
    "vr1.types": ("DetectionRecord", "Prediction"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "__version__",
    *_MODULE_OF,
]

# On every start on a CPU it recommends a library that would fetch a kernel for 4-bit weights from the hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'vr1' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
