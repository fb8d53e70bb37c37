"""Gallery: the same few validation images at every validation, with true boxes, predicted boxes and rewards."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from callbacks.outputs import predictions_of, run_folder, write_picture
from callbacks.rule_refinement import stage_name
from vr1.drawing import draw_grid, draw_tile
from vr1.errors import UserError
from vr1.types import Prediction


class Gallery(Callback):
    """Draw the first images of the validation set with their true and predicted boxes, at every validation.

    The pictures are ``gallery/step_000050.png`` and so on in the run's folder (step 0 being the untrained model, from
    Lightning's sanity check), ``gallery/validate.png`` and ``gallery/test.png`` outside of training. TensorBoard and
    Weights & Biases get the same pictures.

    Args:
        num_images: number of images, from the first on; the order of the data must not change between validations.
        tile_size: side of one image in the picture, in pixels.
        columns: images per row; None chooses a number that makes a landscape picture.

    Note:
        ``validation_step`` and ``test_step`` must return lists of :class:`~vr1.types.Prediction`. With several
        processes the images are the first ones of rank zero.

    Raises:
        UserError: a setting is out of range.
        TypeError: a step returns something else than a list of predictions.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from callbacks import Gallery
        >>> trainer = Trainer(callbacks=[Gallery(num_images=4)], num_sanity_val_steps=-1, logger=False)

    """

    def __init__(self, num_images: int = 8, tile_size: int = 360, columns: int | None = None) -> None:
        for name, value, least in (("num_images", num_images, 1), ("tile_size", tile_size, 64)):
            if value < least:
                raise UserError(f"Gallery: {name} is {value}: give at least {least}")
        if columns is not None and columns < 1:
            raise UserError(f"Gallery: columns is {columns}: give at least 1, or None to let the gallery choose")
        self.num_images = num_images
        self.tile_size = tile_size
        self.columns = columns
        self._predictions: list[Prediction] = []
        self._folder = Path()

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        self._folder = run_folder(trainer)

    @override
    def on_validation_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self._predictions = []

    @override
    def on_validation_batch_end(
        self,
        trainer: "pl.Trainer",
        pl_module: "pl.LightningModule",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.is_global_zero and len(self._predictions) < self.num_images:
            self._predictions += predictions_of(self, outputs)[: self.num_images - len(self._predictions)]

    @override
    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        if not trainer.is_global_zero or not self._predictions:
            return
        function = trainer.state.fn
        assert function is not None
        name = f"step_{trainer.global_step:06d}" if function == TrainerFn.FITTING else function.value
        tiles = [draw_tile(prediction, self.tile_size) for prediction in self._predictions]
        sheet = draw_grid(tiles, _title(trainer, name, self._predictions), columns=self.columns)
        key = "gallery/test" if function == TrainerFn.TESTING else "gallery/val"
        write_picture(trainer, self._folder, f"gallery/{name}.png", sheet, key=key)
        self._predictions = []

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_end = on_validation_end


def _title(trainer: "pl.Trainer", name: str, predictions: list[Prediction]) -> str:
    parts = [name]
    if name.startswith("step_"):
        parts = ["before training"] if trainer.sanity_checking else [f"step {trainer.global_step}"]
        if stage := stage_name(trainer):
            parts.append(f"stage {stage}")
    mean = sum(prediction.rewards.get("total", 0.0) for prediction in predictions) / len(predictions)
    return " · ".join([*parts, f"mean reward {mean:.2f}"])
