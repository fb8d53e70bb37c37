"""Where records come from: made scenes, annotated folders of many formats, the hub, folders of images, mixtures."""

from vr1.data.coco import CocoDataModule
from vr1.data.image_folder import FolderDataModule
from vr1.data.mixture import MixtureDataModule
from vr1.data.odinw import OdinwDataModule, OdinwSet
from vr1.data.referring import RecDataModule
from vr1.data.selection import Selection
from vr1.data.synthetic import SceneDataModule, SceneSource, SceneStyle
from vr1.data.vision_r1 import VisionR1DataModule
from vr1.data.voc import VocDataModule
from vr1.data.yolo import YoloDataModule

__all__ = [
    "CocoDataModule",
    "FolderDataModule",
    "MixtureDataModule",
    "OdinwDataModule",
    "OdinwSet",
    "RecDataModule",
    "SceneDataModule",
    "SceneSource",
    "SceneStyle",
    "Selection",
    "VisionR1DataModule",
    "VocDataModule",
    "YoloDataModule",
]
