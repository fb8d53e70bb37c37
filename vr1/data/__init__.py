"""Where records come from: made scenes, annotated folders of many formats, the hub, folders of images, mixtures."""

from vr1.data.coco_data import CocoDataModule
from vr1.data.folder_data import FolderDataModule
from vr1.data.mixture_data import MixtureDataModule
from vr1.data.odinw_data import OdinwDataModule, OdinwSet
from vr1.data.rec_data import RecDataModule
from vr1.data.scene_data import SceneDataModule
from vr1.data.scenes import SceneSource, SceneStyle
from vr1.data.selection import Selection
from vr1.data.vision_r1_data import VisionR1DataModule
from vr1.data.voc_data import VocDataModule
from vr1.data.yolo_data import YoloDataModule

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
