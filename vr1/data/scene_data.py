"""Made scenes as a LightningDataModule."""

from typing import Any

from vr1.data.datamodule import RecordDataModule, Source, Split
from vr1.data.scenes import SceneSource, SceneStyle


class SceneDataModule(RecordDataModule):
    """Made scenes.

    Args:
        style: what the scenes look like.
        train_scenes: scenes in the training set.
        val_scenes: scenes in the validation set.
        test_scenes: scenes in the test set.
        scene_seed: which of the many data sets of this style.
        loading: batch sizes, workers and order; see `RecordDataModule`.
    """

    def __init__(
        self,
        style: SceneStyle = SceneStyle(),  # noqa: B008 - a frozen dataclass is safe to share
        train_scenes: int = 400,
        val_scenes: int = 256,
        test_scenes: int = 256,
        scene_seed: int = 0,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        self.style, self.scene_seed = style, scene_seed
        self.lengths = {"train": train_scenes, "val": val_scenes, "test": test_scenes, "predict": test_scenes}

    def build(self, split: Split) -> Source:
        """Scenes of one split; what is predicted on are the test scenes."""
        return SceneSource(self.lengths[split], "test" if split == "predict" else split, self.scene_seed, self.style)
