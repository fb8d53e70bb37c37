"""Where records come from: made scenes, COCO files, folders of images."""

from vr1.data.coco_data import CocoDataModule
from vr1.data.folder_data import FolderDataModule
from vr1.data.scene_data import SceneDataModule
from vr1.data.scenes import SceneSource, SceneStyle

__all__ = ["CocoDataModule", "FolderDataModule", "SceneDataModule", "SceneSource", "SceneStyle"]
