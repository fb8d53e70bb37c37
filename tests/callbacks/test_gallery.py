"""Which pictures the gallery writes, and what is in them."""

import lightning.pytorch as pl
import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import Gallery, RuleRefinement
from tests.callbacks.tiny import TinyDetector
from tests.processes import two_ranks
from tests.trainers import trainer
from vr1.drawing.boxes import GOOD, TRUTH

FIT = {"max_steps": 4, "num_sanity_val_steps": -1, "limit_val_batches": 1.0, "val_check_interval": 2}


def has(picture, colour):
    return bool((np.asarray(picture) == colour).all(axis=-1).any())


def test_one_picture_per_validation_and_one_before(tmp_path):
    gallery = Gallery(num_images=4, tile_size=100, columns=2)
    trainer(tmp_path, [RuleRefinement(), gallery], **FIT).fit(TinyDetector())
    names = sorted(path.name for path in (tmp_path / "gallery").iterdir())
    assert names == ["step_000000.png", "step_000002.png", "step_000004.png"]
    pictures = [Image.open(tmp_path / "gallery" / name) for name in names]
    assert {picture.width for picture in pictures} == {16 + 2 * (100 + 16)}
    assert all(has(picture, GOOD) and has(picture, TRUTH) for picture in pictures)
    # The predictions do not change here, so only the titles of the pictures differ.
    assert len({np.asarray(picture)[70:].tobytes() for picture in pictures}) == 1
    assert len({np.asarray(picture).tobytes() for picture in pictures}) == 3


def test_fewer_images_than_num_images(tmp_path):
    trainer(tmp_path, [Gallery(num_images=50, tile_size=100)], **FIT).fit(TinyDetector(images=3))
    assert (tmp_path / "gallery" / "step_000004.png").exists()


def test_validate_and_test_have_their_own_names(tmp_path):
    run = trainer(tmp_path, [Gallery(num_images=2, tile_size=100)], limit_val_batches=1.0)
    run.validate(TinyDetector(), verbose=False)
    run.test(TinyDetector(), verbose=False)
    assert sorted(path.name for path in (tmp_path / "gallery").iterdir()) == ["test.png", "validate.png"]


def test_pictures_go_to_the_run_folder_and_to_tensorboard(tmp_path):
    loggers = [CSVLogger(tmp_path, name="csv"), TensorBoardLogger(tmp_path, name="board")]
    trainer(tmp_path, [Gallery(tile_size=100)], logger=loggers, **FIT).fit(TinyDetector())
    assert (tmp_path / "csv" / "version_0" / "gallery" / "step_000002.png").exists()
    events = EventAccumulator(str(tmp_path / "board" / "version_0")).Reload()
    assert [event.step for event in events.Images("gallery/val")] == [0, 2, 4]


def test_fast_dev_run_writes_nothing(tmp_path):
    trainer(tmp_path, [Gallery(tile_size=100)], fast_dev_run=True, limit_val_batches=1.0).fit(TinyDetector())
    assert not list(tmp_path.rglob("*.png"))


def test_two_processes_write_once(tmp_path):
    settings = {**FIT, "max_steps": 2, **two_ranks(), "logger": CSVLogger(tmp_path, name="csv")}
    trainer(tmp_path, [Gallery(num_images=2, tile_size=100)], **settings).fit(TinyDetector(scale_by_rank=(1.0, 1.0)))
    folders = list(tmp_path.rglob("gallery"))
    assert len(folders) == 1
    assert sorted(path.name for path in folders[0].iterdir()) == ["step_000000.png", "step_000002.png"]


def test_a_step_that_returns_no_predictions_is_an_error(tmp_path):
    class Silent(TinyDetector):
        def validation_step(self, batch, batch_idx):
            return None

    with pytest.raises(TypeError, match="returned NoneType"):
        trainer(tmp_path, [Gallery()], **FIT).fit(Silent())


@pytest.mark.parametrize("setting", [{"num_images": 0}, {"tile_size": 3}, {"columns": 0}])
def test_bad_settings(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} is"):
        Gallery(**setting)


def test_is_a_lightning_callback():
    assert isinstance(Gallery(), pl.Callback)
