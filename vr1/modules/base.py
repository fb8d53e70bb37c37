"""What every module has in common: a policy, its prompts, and the evaluation of what it finds."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from vr1.checkpoints.files import AtomicCheckpointIO
from vr1.checkpoints.state import adapt_window, add_run, check_weights, drop_base
from vr1.detections import box_scores, read_detections, token_ends
from vr1.distributed import gather
from vr1.families import Family
from vr1.metrics import AnswerStatistics, CocoMetrics
from vr1.metrics.answer_file import ScoredCompletion
from vr1.metrics.answer_schema import QuestionKey, question_key
from vr1.modules.state import RunInfo, TrainingState
from vr1.policy.loading import PolicySource
from vr1.policy.policy import Policy
from vr1.prompts import PromptBatch, PromptEncoder
from vr1.rewards import Reward
from vr1.rollout.generate import generate, hidden_tokens
from vr1.rollout.sampling import Sampling
from vr1.seeding import random_states, restore_random_states
from vr1.strategies import gathered_weights
from vr1.strategies.combinations import check_combination
from vr1.types import Detections, Prediction, Rollout, Targets

_SHOWN = ("map", "map_50", "map_75", "ar_100", "accuracy_50")


class DetectionModule(L.LightningModule, ABC):
    """A vision-language model that answers with boxes, evaluated greedily in ``validate``, ``test`` and ``predict``.

    Subclasses add ``training_step``.

    Args:
        policy: which model, and how to load it.
        family: how the model is asked and how it answers; None takes the model's own.
        reward: reward terms; evaluation reports them too.
        evaluation: how completions are drawn in evaluation; greedy.
        max_prompt_tokens: longest prompt, image tokens included; longer ones are refused, never cut.
        optimizer: optimizer over the trainable parameters.
        lr_scheduler: learning-rate schedule per optimizer step; None keeps the rate.
        box_scores: score of each box in evaluation: ``constant`` (0.99, as in all released evaluations of this method)
            or ``log_probs``, the probability of the tokens that the box is written in; see `vr1.detections`.
    """

    updates_per_rollout: int = 1
    """How often a data module repeats each training batch."""

    def __init__(
        self,
        policy: PolicySource,
        family: Family | None,
        reward: Reward | None,
        evaluation: Sampling,
        max_prompt_tokens: int,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        box_scores: Literal["constant", "log_probs"] = "constant",
    ) -> None:
        super().__init__()
        policy.check()
        self.source, self.family, self.evaluation = policy, family or policy.family(), evaluation
        self.reward, self.box_scores = reward or Reward(), box_scores
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.processor = policy.processor()
        self.encoder = PromptEncoder(self.processor, self.family, max_prompt_tokens)
        self.policy: Policy
        self.answers = AnswerStatistics()
        self.coco = CocoMetrics()
        self.training_state = TrainingState()
        self._recorded: Mapping[QuestionKey, ScoredCompletion] = {}
        self._random_states: list[dict[str, Any]] = []

    def set_run_info(self, info: RunInfo) -> None:
        """Say how the run was started, for checkpoints and for the command that resumes it."""
        self.training_state.run = info

    def reuse_answers(self, answers: Mapping[QuestionKey, ScoredCompletion]) -> None:
        """Take these answers in evaluation instead of generating them again; an empty mapping takes none.

        Args:
            answers: answers of an interrupted evaluation of this module, by question.
        """
        self._recorded = answers

    def setup(self, stage: str) -> None:
        """Refuse what cannot work together, before weights are loaded, and have `AtomicCheckpointIO` write checkpoints.

        A plugin of the user's own that writes them is left alone.
        """
        check_combination(
            self.trainer.strategy, self.source, str(self.trainer.precision), self._optimizer_class(stage == "fit")
        )
        if type(self.trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            self.trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def configure_model(self) -> None:
        """Load the weights; Lightning calls this once the strategy knows where they belong."""
        if not hasattr(self, "policy"):
            self.policy = self.source.load()

    def configure_optimizers(self) -> Any:
        """The optimizer over what is trainable, and its schedule by optimizer step."""
        trainable = ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)
        optimizer = self.optimizer(trainable)
        if self.lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"}}

    def _optimizer_class(self, training: bool) -> type | None:
        """What the optimizer will be, found out on parameters of no importance."""
        if not training:
            return None
        layer = torch.nn.Linear(1, 1)
        return type(self.optimizer(layer.named_parameters()))

    def gathered_weights(self) -> AbstractContextManager[None]:
        """All weights on this process for a while, where the strategy shards them: rollouts differ in length."""
        return gathered_weights(self.trainer.strategy)

    def policies(self) -> list[Policy]:
        """The policies of this module with weights of their own, which a strategy may shard."""
        return [self.policy]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what makes a resumed run exact, and what `vr1 export` needs; adapter runs leave the base out."""
        drop_base(checkpoint, self.policy)
        add_run(checkpoint, self.run())
        checkpoint["vr1_random_states"] = gather(random_states())

    def run(self) -> dict[str, Any]:
        """What this run is, in plain values: settings of the policy, last figures, command and configuration.

        Reading the figures may make the processes exchange results: call it on all of them.
        """
        figures = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        info = {"prompt": self.family.prompt_info(), **asdict(self.training_state.run)}
        started = {name: value for name, value in info.items() if value}
        return {"policy": asdict(self.source), "module": type(self).__name__, "figures": figures, **started}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the weights belong here, and take up what `on_save_checkpoint` stored."""
        check_weights(checkpoint, self.policy, self.source)
        self.strict_loading = not self.policy.has_adapters
        adapt_window(checkpoint, self.trainer.accumulate_grad_batches)
        self._random_states = checkpoint.get("vr1_random_states", [])

    def on_train_start(self) -> None:
        """Draw on where the checkpoint left the random generators, if as many processes do as then."""
        if len(self._random_states) == self.trainer.world_size:
            restore_random_states(self._random_states[self.global_rank])
        self._random_states = []

    def on_train_batch_end(self, outputs: Any, batch: PromptBatch, batch_idx: int) -> None:
        """Give up the gradients that a step has used: rollouts and evaluations until the next have use for the room."""
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0:
            for parameter in self.policy.parameters():
                parameter.grad = None

    def predictions(self, prompts: PromptBatch, answers: Sequence[ScoredCompletion]) -> list[Prediction]:
        """Read, match and reward one answer per prompt."""
        texts = [answer.completion for answer in answers]
        detections = [
            replace(found, scores=np.asarray(answer.scores)) if len(answer.scores or ()) == len(found) > 0 else found
            for answer, found in zip(answers, self.read(prompts, texts), strict=True)
        ]
        outcome = self.reward(detections, targets(prompts))
        rewards = {**outcome.terms, "total": outcome.total}
        return [
            Prediction(
                record=record,
                instruction=instruction,
                completion=text,
                detections=found,
                match=match,
                rewards={name: float(values[row]) for name, values in rewards.items()},
            )
            for row, (record, instruction, text, found, match) in enumerate(
                zip(prompts.records, prompts.instructions, texts, detections, outcome.matches, strict=True)
            )
        ]

    def read(self, prompts: PromptBatch, texts: list[str]) -> list[Detections]:
        """The boxes of completions, G after G for each prompt, in image pixels."""
        group = len(texts) // len(prompts)
        return [
            read_detections(
                text, self.family, prompts.records[row // group].image_size, prompts.input_sizes[row // group]
            )
            for row, text in enumerate(texts)
        ]

    @abstractmethod
    def training_step(self, batch: PromptBatch, batch_idx: int) -> Tensor:  # type: ignore[override]
        """The loss of one update."""

    def on_train_batch_start(self, batch: PromptBatch, batch_idx: int) -> None:
        """Number what this step logs by the optimizer steps finished with it; Lightning itself would say one less."""
        self.log("step", float(self.trainer.global_step + 1), batch_size=1)

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> list[Prediction]:  # type: ignore[override]
        """Answer greedily and measure."""
        return self._evaluate(batch)

    def test_step(self, batch: PromptBatch, batch_idx: int) -> list[Prediction]:  # type: ignore[override]
        """Answer greedily and measure."""
        return self._evaluate(batch)

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[Prediction]:
        """Answer greedily."""
        return self.predictions(batch, self._answers(batch))

    def evaluation_settings(self) -> dict[str, Any]:
        """Plain values that decide, beside weights and questions, which answers an evaluation gets."""
        family = type(self.family)
        return {
            "policy": asdict(self.source),
            "family": f"{family.__module__}.{family.__qualname__} {vars(self.family)}",
            "evaluation": asdict(self.evaluation),
            "box_scores": self.box_scores,
        }

    def _answers(self, batch: PromptBatch) -> list[ScoredCompletion]:
        """Answers that are recorded, and new ones to the other questions."""
        asked = zip(batch.records, batch.instructions, batch.input_sizes, strict=True)
        answers = [self._recorded.get(question_key(*question)) for question in asked]
        missing = [row for row, answer in enumerate(answers) if answer is None]
        # Processes that hold parts of one model gather them together, also where one of them has nothing to ask.
        with self.gathered_weights():
            if missing:
                whole = len(missing) == len(batch)
                asking = batch if whole else self.encoder([batch.records[row] for row in missing]).to(self.device)
                for row, answer in zip(missing, self._answer(asking), strict=True):
                    answers[row] = answer
        return [answer for answer in answers if answer is not None]

    def _answer(self, batch: PromptBatch) -> list[ScoredCompletion]:
        rollout = generate(self.policy, batch, self.evaluation, self.processor.tokenizer)
        texts = [texts[0] for texts in rollout.texts]
        if self.box_scores == "constant":
            return [ScoredCompletion(completion=text) for text in texts]
        return [
            ScoredCompletion(completion=text, scores=scores)
            for text, scores in zip(texts, self._box_scores(batch, rollout), strict=True)
        ]

    def _box_scores(self, batch: PromptBatch, rollout: Rollout) -> list[tuple[float, ...]]:
        """Scores of the boxes of each prompt's first completion."""
        values, _ = self.policy.log_probs(batch, rollout.tokens, rollout.mask, prefix=rollout.prefix)
        log_probs = values.cpu().double().numpy()
        left_out = hidden_tokens(self.processor.tokenizer, batch.markers)
        scores = []
        for row, (text, *_) in enumerate(rollout.texts):
            length = int(rollout.mask[row, 0].sum())
            ends = token_ends(self.processor.tokenizer, rollout.tokens[row, 0, :length].tolist(), left_out)
            boxes = self.family.read(text).boxes
            scores.append(tuple(box_scores(text, boxes, ends, log_probs[row, 0, :length]).tolist()))
        return scores

    def _evaluate(self, batch: PromptBatch) -> list[Prediction]:
        predictions = self.predictions(batch, self._answers(batch))
        self.coco.update([prediction.detections for prediction in predictions], batch.records)
        self.answers.update([prediction.match for prediction in predictions])
        for name in predictions[0].rewards:
            mean = torch.tensor([prediction.rewards[name] for prediction in predictions]).mean()
            label = "reward" if name == "total" else f"reward_{name}"
            self.log(f"{self._stage}/{label}", mean, batch_size=len(predictions), on_epoch=True, sync_dist=True)
        return predictions

    def on_validation_epoch_end(self) -> None:
        """Log COCO metrics and answer statistics."""
        self._log_metrics()
        self.log("step", float(self.trainer.global_step))

    def on_test_epoch_end(self) -> None:
        """Log COCO metrics and answer statistics."""
        self._log_metrics()

    def _log_metrics(self) -> None:
        """All figures of a test, the main ones of a validation; of several sets each one's and their average."""
        coco = self.coco.compute()
        shown = {name: value for name, value in coco.items() if self.trainer.testing or name.split("/")[-1] in _SHOWN}
        self.log_dict({f"{self._stage}/{name}": value for name, value in {**shown, **self.answers.compute()}.items()})
        self.coco.reset()
        self.answers.reset()

    def share_of(self, count: Tensor) -> Tensor:
        """This process's count over the processes' mean: so weighted, a mean of their means is the mean over all."""
        count = count.float()
        mean = self.trainer.strategy.reduce(count.clone(), reduce_op="mean")
        return count / mean.clamp(min=torch.finfo(mean.dtype).tiny)

    @property
    def _stage(self) -> str:
        return "test" if self.trainer.testing else "val"


def targets(prompts: PromptBatch) -> list[Targets]:
    """Ground truth of each prompt, crowd regions left out: they are neither to be found nor to be missed."""
    kept = []
    for record in prompts.records:
        rows = ~record.crowd
        labels = tuple(label for label, shown in zip(record.labels, rows, strict=True) if shown)
        kept.append(Targets(boxes_xyxy=record.boxes_xyxy[rows], labels=labels))
    return kept


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` where ``mask`` is true; 0 where it never is."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
