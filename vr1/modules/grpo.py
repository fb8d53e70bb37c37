"""GRPO for detection: the only place where the stages of training meet.

Shape letters: B prompts, G group size, C completion tokens.
"""

import time
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from vr1.advantage import Advantage, zero_variance_groups
from vr1.checkpoints.state import reshard_rollouts
from vr1.distributed import data_share, gather
from vr1.errors import UserError
from vr1.families import Family
from vr1.losses import GRPO, PolicyLoss, PolicyTerms
from vr1.modules.base import DetectionModule, mean_where, targets
from vr1.policy.loading import PolicySource
from vr1.policy.policy import Policy
from vr1.policy.reference import Reference
from vr1.prompts import PromptBatch
from vr1.rewards import Reward
from vr1.rollout.generate import generate
from vr1.rollout.sampling import Sampling
from vr1.seeding import run_seed
from vr1.strategies import shards_weights
from vr1.types import Prefix, Rollout, RolloutBatch, ScoredGroups


class GRPOModule(DetectionModule):
    """Vision-R1: group relative policy optimisation with rewards computed from boxes.

    Args:
        policy: which model, and how to load it.
        family: how the model is asked and how it answers; None takes the model's own.
        reward: reward terms, matching and thresholds.
        sampling: group size, temperature and length of the rollouts.
        evaluation: how completions are drawn in evaluation; greedy.
        advantage: how rewards become advantages.
        loss: which member of the GRPO family; holds ``kl_coef`` and the clip range.
        updates_per_rollout: optimizer steps made from each rollout.
        resample_zero_variance: groups whose rewards are all equal are sampled again, at most this often.
        max_prompt_tokens: longest prompt, image tokens included; longer ones are refused, never cut.
        seed: seed of the rollouts; None takes that of ``seed_everything``.
        optimizer: optimizer over the trainable parameters.
        lr_scheduler: learning-rate schedule per optimizer step; None keeps the rate.
        box_scores: score of each box in evaluation: ``constant`` (0.99, as in all released evaluations of this method)
            or ``log_probs``, the probability of the tokens that the box is written in; see `vr1.detections`.

    Raises:
        UserError: a group of one completion (nothing to compare), or a sampling temperature of 0.

    Source: Vision-R1, arXiv 2503.18013.
    """

    def __init__(
        self,
        policy: PolicySource = PolicySource(),  # noqa: B008 - frozen dataclasses are safe to share
        family: Family | None = None,
        reward: Reward | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008
        evaluation: Sampling = Sampling(group_size=1, temperature=0.0),  # noqa: B008
        advantage: Advantage = Advantage(),  # noqa: B008
        loss: PolicyLoss | None = None,
        updates_per_rollout: int = 1,
        resample_zero_variance: int = 0,
        max_prompt_tokens: int = 1024,
        seed: int | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        box_scores: Literal["constant", "log_probs"] = "constant",
    ) -> None:
        super().__init__(policy, family, reward, evaluation, max_prompt_tokens, optimizer, lr_scheduler, box_scores)
        if sampling.group_size < 2:
            raise UserError(
                f"sampling.group_size={sampling.group_size}: GRPO compares the completions of a group, so it needs at"
                " least 2; 8 is usual"
            )
        if sampling.temperature == 0:
            raise UserError("sampling.temperature=0 makes all completions of a group alike; 1 is usual")
        if updates_per_rollout < 1:
            raise UserError(f"updates_per_rollout={updates_per_rollout} must be at least 1")
        if resample_zero_variance < 0:
            raise UserError(f"resample_zero_variance={resample_zero_variance} must not be negative; 0 never resamples")
        self.sampling, self.advantage, self.loss, self.seed = sampling, advantage, loss or GRPO(), run_seed(seed)
        self.updates_per_rollout, self.resample_zero_variance = updates_per_rollout, resample_zero_variance
        self.reference: Reference | None = None
        self._is_trained = True

    def setup(self, stage: str) -> None:
        """Check the settings, and learn whether a reference will be wanted."""
        super().setup(stage)
        self._is_trained = stage == "fit"

    def configure_model(self) -> None:
        """Load the policy and, where it is about to be trained, remember it as the reference."""
        super().configure_model()
        if self.loss.kl_coef > 0 and self.reference is None and self._is_trained:
            self.reference = Reference(self.policy)

    def policies(self) -> list[Policy]:
        """The policy, and the reference where that is a copy."""
        return [*super().policies(), *(self.reference.policies() if self.reference else [])]

    def training_step(self, batch: PromptBatch, batch_idx: int) -> Tensor:
        """One update: sample and reward where this batch is new, then the loss of its completions."""
        started = time.perf_counter()
        window = self.trainer.accumulate_grad_batches
        slot, update = batch_idx % window, batch_idx // window % self.updates_per_rollout
        if update == 0 or slot not in self.training_state.rollout_batches:
            self.training_state.rollout_batches[slot] = self._gather(batch)
        rollout = self.training_state.rollout_batches[slot]

        before = time.perf_counter()
        log_probs, entropy = self.policy.log_probs(
            batch, rollout.tokens, rollout.mask, self.sampling.temperature, rollout.take_prefix()
        )
        if rollout.old_log_probs is None:
            rollout.old_log_probs = log_probs.detach()
        loss, metrics = self.loss(
            PolicyTerms(
                log_probs=log_probs,
                old_log_probs=rollout.old_log_probs,
                reference_log_probs=rollout.reference_log_probs,
                advantages=rollout.advantages,
                mask=rollout.mask,
            )
        )
        now = time.perf_counter()
        self.training_state.timer.tokens += int(rollout.mask.sum())
        per_token = {**metrics, "entropy": mean_where(entropy, rollout.mask)}
        share = self.share_of(rollout.mask.sum())
        metrics = {name: value * share for name, value in per_token.items()}
        loss = loss * self.share_of(self.loss.weight(rollout.mask))
        self._log("grpo", {**metrics, "loss": loss.detach()}, len(batch))
        self._log("perf", {"policy_forward_seconds": now - before, "sampling_seconds": before - started}, len(batch))
        return loss

    def _gather(self, batch: PromptBatch) -> RolloutBatch:
        """Sample, reward and compare the completions of a batch."""
        with self.gathered_weights():
            rollout, rewards, terms = self._sample(batch)
        started = time.perf_counter()
        mask = rollout.mask
        if self.loss.mask_truncated:
            mask = mask & rollout.finished[..., None]
        reference = None
        if self.reference is not None:
            with self.training_state.timer.measure("reference"):
                reference = self.reference.log_probs(batch, rollout.tokens, mask, self.sampling.temperature)
        self._report(batch, rollout, rewards, terms, reference_seconds=time.perf_counter() - started)
        advantages = self.advantage(rewards)
        self.training_state.scored_groups = ScoredGroups(
            records=batch.records,
            instructions=batch.instructions,
            input_sizes=batch.input_sizes,
            texts=rollout.texts,
            rewards=rewards,
            terms=terms,
            advantages=advantages,
        )
        return RolloutBatch(
            tokens=rollout.tokens,
            mask=mask,
            advantages=advantages.to(rollout.tokens.device),
            reference_log_probs=reference,
            prefix=rollout.prefix if self._keeps_graph() else None,
        )

    def _keeps_graph(self) -> bool:
        """Whether the forward of the prompts that a rollout makes serves its first update too."""
        return self.policy.can_reuse_prefix(sharded=shards_weights(self.trainer.strategy))

    def _sample(self, batch: PromptBatch) -> tuple[Rollout, Tensor, dict[str, Tensor]]:
        """Completions, their rewards ``[B, G]`` and the same by term; groups without any difference drawn again."""
        rollout = self._rollout(batch, draw=0)
        rewards, terms = self._rewards(batch, rollout)
        for attempt in range(1, self.resample_zero_variance + 1):
            stuck = zero_variance_groups(rewards)
            if not stuck.any():
                break
            again = self._rollout(batch, draw=attempt, prefix=rollout.prefix)
            new_rewards, new_terms = self._rewards(batch, again)
            rollout = merge(rollout, again, stuck)
            rewards = torch.where(stuck[:, None], new_rewards, rewards)
            terms = {name: torch.where(stuck[:, None], new_terms[name], value) for name, value in terms.items()}
        return rollout, rewards, terms

    def _rollout(self, batch: PromptBatch, draw: int, prefix: Prefix | None = None) -> Rollout:
        # Every attempt at every step draws from a stream of its own for each record, which a resumed run meets again,
        # on as many processes as it likes.
        number = (self.seed * 1_000_003 + self.trainer.global_step) * (self.resample_zero_variance + 1) + draw
        self.policy.eval()
        with self.training_state.timer.measure("rollout"):
            rollout = generate(
                self.policy, batch, self.sampling, self.processor.tokenizer, number, prefix, self._keeps_graph()
            )
        self.policy.train()
        return rollout

    def _rewards(self, batch: PromptBatch, rollout: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        """Total rewards ``[B, G]`` and the same by term."""
        shape = rollout.finished.shape
        texts = [text for group in rollout.texts for text in group]
        repeated = [target for target in targets(batch) for _ in range(shape[1])]
        with self.training_state.timer.measure("reward"):
            outcome = self.reward(self.read(batch, texts), repeated)
        return outcome.total.reshape(shape), {name: value.reshape(shape) for name, value in outcome.terms.items()}

    def _report(
        self, batch: PromptBatch, rollout: Rollout, rewards: Tensor, terms: dict[str, Tensor], reference_seconds: float
    ) -> None:
        size = len(batch)
        tokens = float(rollout.mask.sum())
        self._log("reward", {"total": rewards.mean(), **{name: value.mean() for name, value in terms.items()}}, size)
        self._log(
            "grpo",
            {
                "zero_variance_groups": zero_variance_groups(rewards).float().mean(),
                "reward_std": rewards.std(dim=1).mean(),
                "completion_tokens": tokens / rollout.finished.numel(),
                "truncated": (~rollout.finished).float().mean(),
            },
            size,
        )
        seconds = sum(rollout.seconds.values())
        parts = {f"{part}_seconds": value for part, value in rollout.seconds.items()}
        self._log(
            "perf", {"tokens_per_second": tokens / seconds, "reference_seconds": reference_seconds, **parts}, size
        )

    def _log(self, group: str, values: dict[str, Any], batch_size: int) -> None:
        named = {f"{group}/{name}": float(value) for name, value in values.items()}
        self.log_dict(named, batch_size=batch_size, sync_dist=self.trainer.world_size > 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the rollouts in flight too: those of all processes, since one of them writes the file."""
        super().on_save_checkpoint(checkpoint)
        if self.updates_per_rollout > 1:
            own = [rollout.state_dict() for _, rollout in sorted(self.training_state.rollout_batches.items())]
            # One list a process becomes one list a batch, the order in which the prompts were drawn.
            checkpoint["vr1_rollouts"] = [list(pieces) for pieces in zip(*gather(own), strict=True)]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the rollouts in flight, this process's share of them."""
        super().on_load_checkpoint(checkpoint)
        stored, share = checkpoint.get("vr1_rollouts", []), data_share(self.trainer)
        if not stored or self.trainer.state.fn != TrainerFn.FITTING:
            return
        pieces = reshard_rollouts(stored, self.trainer.accumulate_grad_batches, share.world)
        self.training_state.rollout_batches = {
            slot: RolloutBatch.from_state(row[share.rank], self.device) for slot, row in enumerate(pieces)
        }


def merge(kept: Rollout, drawn: Rollout, take: Tensor) -> Rollout:
    """``kept`` with the groups of ``drawn`` in the places where ``take`` ``[B]`` is true."""
    length = max(kept.tokens.shape[-1], drawn.tokens.shape[-1])

    def widen(values: Tensor) -> Tensor:
        return torch.nn.functional.pad(values, (0, length - values.shape[-1]))

    rows = take.to(kept.tokens.device)
    where = rows[:, None, None]
    return Rollout(
        tokens=torch.where(where, widen(drawn.tokens), widen(kept.tokens)),
        mask=torch.where(where, widen(drawn.mask), widen(kept.mask)),
        finished=torch.where(rows[:, None], drawn.finished, kept.finished),
        texts=[new if chosen else old for old, new, chosen in zip(kept.texts, drawn.texts, take.tolist(), strict=True)],
        seconds={part: kept.seconds[part] + drawn.seconds[part] for part in kept.seconds},
        prefix=kept.prefix,
    )
