"""Where records come from: synthetic scenes, annotated folders, the hub, folders of images, and mixtures of these."""

from vr1.data.coco import CocoDataModule
from vr1.data.datamodule import RecordDataModule
from vr1.data.image_folder import ImageFolderDataModule
from vr1.data.mixture import MixtureDataModule
from vr1.data.odinw import OdinwDataModule, OdinwSet
from vr1.data.referring import ReferringDataModule
from vr1.data.selection import Selection
from vr1.data.synthetic import SceneDataModule, SceneSource, SceneStyle
from vr1.data.vision_r1 import VisionR1DataModule
from vr1.data.voc import VocDataModule
from vr1.data.yolo import YoloDataModule

__all__ = [
    "CocoDataModule",
    "ImageFolderDataModule",
    "MixtureDataModule",
    "OdinwDataModule",
    "OdinwSet",
    "RecordDataModule",
    "ReferringDataModule",
    "SceneDataModule",
    "SceneSource",
    "SceneStyle",
    "Selection",
    "VisionR1DataModule",
    "VocDataModule",
    "YoloDataModule",
]
