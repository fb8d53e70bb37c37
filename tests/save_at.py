"""Saves a checkpoint in the middle of a training."""

from lightning.pytorch.callbacks import Checkpoint


class SaveAt(Checkpoint):
    """Saves after the optimizer step ``step``: at the end of the ``batch``, ``validation``, ``epoch`` or ``training``.

    As Lightning's own checkpoints it comes behind the other callbacks.
    """

    def __init__(self, step, path, hook="batch"):
        self.hook, self.step, self.path, self.saved = hook, step, path, False

    def _save(self, hook, trainer):
        # The first batch after the step has the same number of steps, and half a step more.
        if hook == self.hook and trainer.global_step == self.step and not self.saved:
            self.saved = True
            trainer.save_checkpoint(self.path)

    def on_train_batch_end(self, trainer, *_):
        self._save("batch", trainer)

    def on_validation_end(self, trainer, *_):
        self._save("validation", trainer)

    def on_train_epoch_end(self, trainer, *_):
        self._save("epoch", trainer)

    def on_train_end(self, trainer, *_):
        self._save("training", trainer)
