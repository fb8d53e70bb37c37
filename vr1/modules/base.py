"""What every module has in common: a policy, its prompts, and the evaluation of its answers."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from vr1.checkpoints.files import AtomicCheckpointIO
from vr1.checkpoints.state import (
    adapt_window,
    add_gradients,
    add_run,
    check_weights,
    continue_epoch,
    drop_base,
    gradients_of,
    restore_gradients,
)
from vr1.data.accumulation import batches_left, batches_per_step
from vr1.distributed import gather
from vr1.families import Family
from vr1.metrics.answer_file import ScoredCompletion
from vr1.metrics.answer_schema import QuestionKey
from vr1.modules.evaluation import EvaluationMetrics, answer_prompts, complete_answers, predictions_of
from vr1.modules.figures import StepFigures, on_device
from vr1.modules.state import RunInfo, TrainingState
from vr1.optimizers import clippable, gradient_norm, is_default_learning_rate, named_lambdas
from vr1.policy.loading import PolicySource
from vr1.policy.mapped import load_mapped
from vr1.policy.policy import Policy
from vr1.prompts import PromptBatch, PromptEncoder
from vr1.rewards import Reward
from vr1.rollout.sampler import Sampler, SharedPrefixSampler, Workload
from vr1.rollout.sampling import Sampling
from vr1.seeding import random_states, restore_random_states
from vr1.strategies import gathered_weights, shards_weights
from vr1.strategies.combinations import check_combination, compute_dtype
from vr1.types import Prediction


@named_lambdas
class DetectionModule(L.LightningModule, ABC):
    """A vision-language model that answers with boxes, evaluated greedily in ``validate``, ``test`` and ``predict``.

    Subclasses add ``training_step``.

    Args:
        policy: which model, and how to load it.
        family: prompt and answer format; None takes the model's own.
        reward: reward terms, matching and thresholds; evaluation reports the terms.
        evaluation: how completions are sampled in evaluation; greedy.
        max_prompt_tokens: longest prompt, image tokens included; a longer one is an error, never cut.
        sampler: samples the completions, in training and evaluation; None takes vr1's own decoder,
            `vr1.rollout.SharedPrefixSampler`.
        optimizer: optimizer over the trainable parameters; AdamW without weight decay, at the learning rate of full
            fine-tuning.
        lr_scheduler: learning-rate schedule per optimizer step; None keeps the rate.

    Attributes:
        training_state: what callbacks read of a running training.
        step_figures: what the batches of the running optimizer step add, to be logged with it.
    """

    updates_per_rollout: int = 1
    """Optimizer steps made from each training batch, which a data module repeats as often."""

    samples_whole_steps: bool = False
    """Whether the first batch of an optimizer step has to carry its other batches."""

    def __init__(
        self,
        policy: PolicySource = PolicySource(),  # noqa: B008 - frozen dataclasses are safe to share
        family: Family | None = None,
        reward: Reward | None = None,
        evaluation: Sampling = Sampling(group_size=1, temperature=0.0),  # noqa: B008
        max_prompt_tokens: int = 1024,
        # A lambda, since the command line reads class and settings from its source: --model.optimizer.lr changes one.
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        super().__init__()
        policy.check()
        self.source, self.family, self.evaluation = policy, family or policy.family(), evaluation
        self.reward, self.sampler = reward or Reward(), sampler or SharedPrefixSampler()
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.processor = policy.processor()
        self.encoder = PromptEncoder(self.processor, self.family, max_prompt_tokens)
        self.policy: Policy
        self.training_state, self.step_figures = TrainingState(), StepFigures()
        self.metrics = EvaluationMetrics(list(self.reward.terms))
        self._recorded: Mapping[QuestionKey, ScoredCompletion] = {}
        self._random_states: list[dict[str, Any]] = []
        self._gradients: Mapping[str, Tensor] = {}
        self._figures: Mapping[str, Mapping[str, Tensor]] = {}
        self._within_step = False
        self._weights: Mapping[str, Tensor] = {}
        self._evaluation = ExitStack()

    def set_run_info(self, info: RunInfo) -> None:
        """Say how the run was started, for checkpoints and for the command that resumes it."""
        self.training_state.run = info

    def reuse_answers(self, answers: Mapping[QuestionKey, ScoredCompletion]) -> None:
        """Take these answers in evaluation instead of generating them again; an empty mapping takes none.

        Args:
            answers: answers of an interrupted evaluation of this module, by question.
        """
        self._recorded = answers

    # Loading and optimizer

    def setup(self, stage: str) -> None:
        """Check before weights are loaded that strategy, policy, precision, optimizer and sampler can work together.

        Checkpoints are written atomically, unless the user has set a plugin that writes them.
        """
        optimizer_class = self.optimizer_class() if stage == "fit" else None
        check_combination(self.trainer.strategy, self.source, str(self.trainer.precision), optimizer_class)
        self.sampler.setup(self._workload(stage))
        if type(self.trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            self.trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def configure_model(self) -> None:
        """Load the weights; Lightning calls this when the strategy is ready for them.

        A strategy that shards them gets a policy without weights, and takes its part of each from `take_weights`.
        """
        # Lightning calls it once for each of fit, validate, test and predict.
        if "policy" in self._modules:
            return
        # Without a trainer, as in a notebook, no strategy shards anything.
        if self._trainer is not None and shards_weights(self._trainer.strategy):
            self.policy, self._weights = load_mapped(self.source)
        else:
            self.policy = self.source.load()

    def configure_optimizers(self) -> Any:
        """The optimizer of the trainable parameters, and its schedule by optimizer step."""
        optimizer = self.optimizer(self._trained())
        if is_default_learning_rate(optimizer):
            rate, name = optimizer.param_groups[0]["lr"], type(optimizer).__name__
            rank_zero_warn(f"the learning rate is {rate:g}, the default of {name}: model.optimizer.lr sets another")
        if self.lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"}}

    def optimizer_class(self) -> type:
        """The class of the optimizer, from one that is made for a layer of two numbers."""
        layer = torch.nn.Linear(1, 1)
        return type(self.optimizer(layer.named_parameters()))

    def _trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)

    def _workload(self, stage: str) -> Workload:
        """What the sampler will be used for in ``fit``, ``validate``, ``test`` or ``predict``."""
        return Workload(
            source=self.source,
            encoder=self.encoder,
            dtype=compute_dtype(str(self.trainer.precision), self.source.dtype),
            max_prompt_tokens=self.encoder.max_prompt_tokens,
            max_new_tokens=max(sampling.max_new_tokens for sampling in self.samplings(stage)),
            device=self.trainer.strategy.root_device,
            processes=self.trainer.num_devices,
        )

    def samplings(self, stage: str) -> list[Sampling]:
        """The settings that completions are sampled with in ``fit``, ``validate``, ``test`` or ``predict``."""
        del stage
        return [self.evaluation]

    def gathered_weights(self) -> AbstractContextManager[None]:
        """All weights on this process for a while, where the strategy shards them: rollouts differ in length.

        A sampler with weights of its own does not need them.
        """
        return gathered_weights(self.trainer.strategy) if self.sampler.computes_with_policy else nullcontext()

    def policies(self) -> list[Policy]:
        """The policies of this module with weights of their own, which a strategy may shard."""
        return [self.policy]

    def take_weights(self) -> Mapping[str, Tensor]:
        """The weights that `policies` have been made without, by name, once; empty if they have weights."""
        weights, self._weights = self._weights, {}
        return weights

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what makes a resumed run exact, and what `vr1 export` needs; adapter runs leave the base out."""
        drop_base(checkpoint, self.policy)
        add_run(checkpoint, self.run())
        checkpoint["vr1_random_states"] = gather(random_states())
        if self._within_step:
            add_gradients(checkpoint, self._trained(), partial(self.trainer.strategy.reduce, reduce_op="mean"))
            checkpoint["vr1_figures"] = self.step_figures.state_dict(self.device, self.trainer.strategy.reduce)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the weights belong to this policy, and read what `on_save_checkpoint` stored."""
        check_weights(checkpoint, self.policy, self.source)
        self.strict_loading = not self.policy.has_adapters
        continue_epoch(checkpoint)
        adapt_window(checkpoint, batches_per_step(self.trainer, checkpoint["epoch"]))
        self._random_states = checkpoint.get("vr1_random_states", [])
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._gradients = gradients_of(checkpoint)
            self._figures = checkpoint.get("vr1_figures", {})

    def run(self) -> dict[str, Any]:
        """What this run is, in plain values: settings of the policy, latest figures, command and configuration.

        Reading the figures may make the processes exchange results: call it on all of them.
        """
        figures = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        info = {"prompt": self.family.prompt_info(), **asdict(self.training_state.run)}
        started = {name: value for name, value in info.items() if value}
        return {"policy": asdict(self.source), "module": type(self).__name__, "figures": figures, **started}

    # Training

    @abstractmethod
    def training_step(self, batch: PromptBatch, batch_idx: int) -> Tensor:  # type: ignore[override]
        """The loss of one update."""

    @property
    @abstractmethod
    def objective(self) -> str:
        """What is trained for at present, ``grpo`` or ``sft``: the beginning of the names of its figures."""

    def on_train_start(self) -> None:
        """Restore what the checkpoint has of the middle of an epoch or of a step.

        That are the random generators, if it was written by as many processes as there are now, the gradients and
        figures of an optimizer step that it interrupts, and the schedule of the accumulation.
        """
        # A GradientAccumulationScheduler acts at the start of an epoch only.
        self.trainer.accumulate_grad_batches = batches_per_step(self.trainer, self.trainer.current_epoch)
        restore_gradients(self._trained(), self._gradients)
        self.step_figures.load_state_dict(self._figures)
        self._gradients, self._figures = {}, {}
        if len(self._random_states) == self.trainer.world_size:
            restore_random_states(self._random_states[self.global_rank])
        self._random_states = []

    def on_train_batch_start(self, batch: PromptBatch, batch_idx: int) -> None:
        """Number what this step logs by the optimizer steps finished with it; Lightning itself counts one less."""
        self.log_dict(on_device({"step": self.trainer.global_step + 1}, self.device), batch_size=1)
        self._within_step = batches_left(self.trainer, batch_idx) > 1

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the figures of the optimizer step: those of all its batches."""
        del optimizer
        self.log_dict(self.step_figures.take(self.device, self.trainer.strategy.reduce), batch_size=1)

    def on_train_batch_end(self, outputs: Any, batch: PromptBatch, batch_idx: int) -> None:
        """Free the gradients after an optimizer step: rollouts and evaluations before the next can use the memory."""
        if not self._within_step:
            for parameter in self.policy.parameters():
                parameter.grad = None

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Log the norm of the gradient before it is clipped, and clip it."""
        norm = gradient_norm(optimizer)
        if norm is not None:
            self.log(f"{self.objective}/grad_norm", norm, batch_size=1)
        with clippable(optimizer, self.trainer.precision_plugin):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def share_of(self, count: Tensor) -> Tensor:
        """This process's count over the mean count of all: weighted by it, a mean of their means is the mean of all."""
        count = count.float()
        mean = self.trainer.strategy.reduce(count.clone(), reduce_op="mean")
        return count / mean.clamp(min=torch.finfo(mean.dtype).tiny)

    # Evaluation

    def answer(self, prompts: PromptBatch) -> list[ScoredCompletion]:
        """One greedy answer of the policy for each of B prompts, with a score for each of its boxes."""
        return answer_prompts(
            self.policy, prompts, self.evaluation, self.processor.tokenizer, self.family, self.sampler
        )

    def predictions(self, prompts: PromptBatch, answers: Sequence[ScoredCompletion]) -> list[Prediction]:
        """Parse, match and reward one answer for each prompt."""
        return predictions_of(prompts, answers, self.family, self.reward)

    def _gather_for_evaluation(self) -> None:
        """Gather sharded weights once for all batches: they do not change until `_release_after_evaluation`.

        All processes do so together, also one whose answers are all recorded.
        """
        self._evaluation.enter_context(self.gathered_weights())

    def _release_after_evaluation(self) -> None:
        self._evaluation.close()

    def on_validation_epoch_start(self) -> None:
        """Gather sharded weights, which every process then holds in full until the last batch is answered."""
        self._gather_for_evaluation()

    def on_test_epoch_start(self) -> None:
        """Gather sharded weights, as in validation."""
        self._gather_for_evaluation()

    def on_predict_epoch_start(self) -> None:
        """Gather sharded weights, as in validation."""
        self._gather_for_evaluation()

    def on_predict_epoch_end(self) -> None:
        """Free gathered weights."""
        self._release_after_evaluation()

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[Prediction]:
        """Answer greedily."""
        if batch_idx == 0:
            # Weights do not change during an evaluation.
            self.sampler.synchronise(self.policy, batch)
        answers = complete_answers(
            batch, self._recorded, self.answer, lambda records: self.encoder(records).to(self.device)
        )
        return self.predictions(batch, answers)

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> list[Prediction]:  # type: ignore[override]
        """Answer greedily and measure."""
        predictions = self.predict_step(batch, batch_idx)
        self.metrics.update(predictions)
        return predictions

    def test_step(self, batch: PromptBatch, batch_idx: int) -> list[Prediction]:  # type: ignore[override]
        """Answer greedily and measure."""
        return self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Free gathered weights; log the main COCO metrics, answer statistics and mean rewards."""
        self._release_after_evaluation()
        figures = self._log_metrics("val", every_figure=False)
        self.log("step", float(self.trainer.global_step))
        self.after_validation(figures)

    def after_validation(self, figures: Mapping[str, Tensor]) -> None:
        """React to the figures of a validation, by name; for subclasses.

        Args:
            figures: as logged, without ``val/``, the same on all processes.
        """

    def on_test_epoch_end(self) -> None:
        """Free gathered weights; log all COCO metrics, answer statistics and mean rewards."""
        self._release_after_evaluation()
        self._log_metrics("test", every_figure=True)

    def _log_metrics(self, stage: str, every_figure: bool) -> dict[str, Tensor]:
        figures = self.metrics.compute(every_figure)
        if self.trainer.state.fn == TrainerFn.FITTING and self.trainer.is_global_zero:
            self.training_state.classes = self.metrics.per_class()
        self.log_dict({f"{stage}/{name}": value for name, value in figures.items()})
        self.metrics.reset()
        return figures

    def evaluation_settings(self) -> dict[str, Any]:
        """Plain values that decide, with weights and questions, which answers an evaluation gets."""
        family = type(self.family)
        return {
            "policy": asdict(self.source),
            "family": f"{family.__module__}.{family.__qualname__} {vars(self.family)}",
            "evaluation": asdict(self.evaluation),
            **self.sampler.describe(),
        }


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` where ``mask``, of the same shape, is true; 0 where it never is."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
