"""The lines at the start and at the end of a training: what is trained, where results go, the next commands."""

import shlex
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from callbacks.before_after import BeforeAfter
from callbacks.export import Export
from callbacks.report import Report
from callbacks.schedule import total_steps
from vr1.data.datamodule import RecordDataModule
from vr1.modules.base import DetectionModule
from vr1.runs.tables import figure_text


def start_lines(trainer: "pl.Trainer", pl_module: "pl.LightningModule", folder: Path) -> list[str]:
    """What a training is about to do.

    Args:
        trainer: a trainer whose model and data are set up.
        pl_module: the module that it trains.
        folder: the run's folder.

    Returns:
        At most five lines: method and length, model, what is trained of it, data, where results go.
    """
    limit = f"max {trainer.max_steps} steps" if trainer.max_steps != -1 else f"max {trainer.max_epochs} epochs"
    devices = f"{trainer.world_size} x {trainer.strategy.root_device.type}"
    lines = [f"training: {type(pl_module).__name__}, {limit}, {devices}, precision {trainer.precision}"]
    if isinstance(pl_module, DetectionModule):
        lines.append(f"  model    {pl_module.source.path}")
    parameters = [(parameter.numel(), parameter.requires_grad) for parameter in pl_module.parameters()]
    trained, total = sum(count for count, trains in parameters if trains), sum(count for count, _ in parameters)
    adapters = isinstance(pl_module, DetectionModule) and pl_module.policy.has_adapters
    lines.append(f"  trained  {trained:,} of {total:,} parameters" + (" (adapters)" if adapters else ""))
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    if isinstance(datamodule, RecordDataModule):
        sizes = ", ".join(f"{len(source):,} {split}" for split, source in datamodule.sources.items())  # type: ignore[arg-type]
        lines.append(f"  data     {type(datamodule).__name__}: images {sizes}; batches of {datamodule.batch_size}")
    return [*lines, f"  results  {folder}"]


def end_lines(trainer: "pl.Trainer", pl_module: "pl.LightningModule", folder: Path, seconds: float) -> list[str]:
    """The result of a training, and the commands that use it.

    Args:
        trainer: a trainer that has ended.
        pl_module: the module that it trained.
        folder: the run's folder.
        seconds: that training took.

    Returns:
        At most six lines. The metrics are among them only without :class:`~callbacks.BeforeAfter`, which prints a table
        of them.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    total = total_steps(trainer)
    steps = f"{trainer.global_step} steps" if total is None else f"{trainer.global_step} of {total} steps"
    lines = [f"trained: {steps} in {duration(seconds)}, results in {folder}"]
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    if metrics and not any(isinstance(callback, BeforeAfter) for callback in callbacks):
        shown = [f"{name.removeprefix('val/')} {figure_text(value)}" for name, value in metrics.items()][:5]
        lines.append(f"  metrics  {', '.join(shown)}")
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return lines
    model = next((folder / callback.dirname for callback in callbacks if isinstance(callback, Export)), None)
    checkpoint = _checkpoint(trainer)
    adapters = isinstance(pl_module, DetectionModule) and pl_module.policy.has_adapters
    if model is not None and not adapters:
        settings = ["--config", "configs/predict.yaml", "--model.policy.path", str(model)]
        command = shlex.join(["python", "-m", "vr1", "predict", *settings])
        lines.append(f"  predict  {command} --data.images FOLDER")
    elif checkpoint:
        # Adapters alone are no model that predict loads; exported with --merge they are.
        settings = ["--ckpt", checkpoint, *(["--merge"] if adapters else []), "--out", str(folder / "exported")]
        lines.append(f"  export   {shlex.join(['python', '-m', 'vr1', 'export', *settings])}")
    if not any(isinstance(callback, Report) for callback in callbacks):
        lines.append(f"  report   {shlex.join(['python', '-m', 'vr1', 'report', str(folder)])}")
    if total is not None and trainer.global_step < total and checkpoint:
        lines.append(f"  resume   the same command with {shlex.join(['--ckpt_path', checkpoint])}")
    lines.append(f"  compare  {shlex.join(['python', '-m', 'vr1', 'compare', str(folder)])} OTHER_RUN")
    return lines


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    Example:
        >>> [duration(seconds) for seconds in (5, 65, 3661)]
        ['0:05', '1:05', '1:01:01']
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _checkpoint(trainer: "pl.Trainer") -> str:
    """The newest checkpoint of the run; empty if there is none."""
    paths = [
        str(path)
        for callback in trainer.checkpoint_callbacks
        if isinstance(callback, pl.callbacks.ModelCheckpoint)
        for path in (callback.last_model_path, callback.best_model_path)
        if path
    ]
    return paths[0] if paths else ""
