"""GRPO for detection: sample -> parse -> match -> reward -> advantage -> loss.

Shape letters: B prompts, G group size, C completion tokens.
"""

import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from vr1.advantage import AdvantageEstimator, Advantages, GroupAdvantage, RewardedGroups, zero_variance_groups
from vr1.checkpoints.state import reshard_rollouts
from vr1.detections import token_ends
from vr1.distributed import data_share, gather
from vr1.errors import UserError
from vr1.losses import GRPO, PolicyLoss, PolicyTerms
from vr1.modules.base import DetectionModule, mean_where
from vr1.modules.evaluation import parse_completions, targets_of
from vr1.modules.sft import supervised_loss
from vr1.modules.warm_start import WarmStart, WarmStartProgress
from vr1.policy.policy import Policy
from vr1.policy.reference import Reference
from vr1.prompts import PromptBatch
from vr1.rollout.generate import hidden_tokens
from vr1.rollout.sampling import Sampling
from vr1.seeding import run_seed
from vr1.strategies import shards_weights
from vr1.types import Prefix, Rollout, RolloutBatch, ScoredGroups


class GRPOModule(DetectionModule):
    """Vision-R1: group relative policy optimisation with rewards computed from boxes.

    Args:
        sampling: group size, temperature and length of the rollouts.
        advantage: how rewards become advantages; None takes that of the paper, `vr1.advantage.GroupAdvantage`.
        loss: which member of the GRPO family, with ``kl_coef`` and the clip range; None takes GRPO.
        updates_per_rollout: optimizer steps made from each rollout.
        resample_zero_variance: how many times to resample zero-variance groups, in which all rewards are equal.
        warm_start: supervised training before the first rollout; None has none.
        seed: seed of the rollouts; None takes that of ``seed_everything``.
        **kwargs: settings of `DetectionModule`.

    Raises:
        UserError: a group of one completion (nothing to compare), a sampling temperature of 0, or a warm start with a
            KL term: its reference would be the model before the warm start; or a loss with a correction and ``top_p``
            below 1.

    Source: Vision-R1, arXiv 2503.18013.
    """

    def __init__(
        self,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen dataclasses are safe to share
        advantage: AdvantageEstimator | None = None,
        loss: PolicyLoss | None = None,
        updates_per_rollout: int = 1,
        resample_zero_variance: int = 0,
        warm_start: WarmStart | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if sampling.group_size < 2:
            raise UserError(
                f"sampling.group_size={sampling.group_size}: GRPO compares the completions of a group, so it needs at"
                " least 2; 8 is usual"
            )
        if sampling.temperature == 0:
            raise UserError("sampling.temperature=0 makes all completions of a group equal; 1 is usual")
        if updates_per_rollout < 1:
            raise UserError(f"updates_per_rollout={updates_per_rollout} must be at least 1")
        if resample_zero_variance < 0:
            raise UserError(f"resample_zero_variance={resample_zero_variance} must not be negative; 0 never resamples")
        self.sampling, self.loss, self.seed = sampling, loss or GRPO(), run_seed(seed)
        self.advantage = advantage or GroupAdvantage()
        self.warm_start = None if warm_start is None else WarmStartProgress(warm_start)
        if self.loss.correction != "none" and sampling.top_p < 1:
            raise UserError(
                f"loss.correction={self.loss.correction} with sampling.top_p={sampling.top_p}: the sampler then samples"
                " from a part of the vocabulary; set sampling.top_p to 1, or loss.correction to none"
            )
        if warm_start is not None and self.loss.kl_coef > 0:
            raise UserError(
                f"warm_start with loss.kl_coef={self.loss.kl_coef}: the reference of the KL term would be the model"
                " before the warm start; set loss.kl_coef to 0, or train twice, first vr1.SFTModule and then"
                " vr1.GRPOModule with --model.policy.path on the model that it exported"
            )
        self.updates_per_rollout, self.resample_zero_variance = updates_per_rollout, resample_zero_variance
        self.reference: Reference | None = None
        self._rates: list[list[float]] = []
        self._is_trained = True

    @property
    def objective(self) -> str:
        """``sft`` in a warm start, then ``grpo``."""
        return "sft" if self.training_state.warm_start else "grpo"

    def setup(self, stage: str) -> None:
        """Check the settings, and note whether there is a training, which may need a reference."""
        super().setup(stage)
        self._is_trained = stage == "fit"

    def configure_model(self) -> None:
        """Load the policy and, before a training with a KL term, copy it as the reference."""
        super().configure_model()
        if self.loss.kl_coef > 0 and self.reference is None and self._is_trained:
            self.reference = Reference(self.policy)

    def samplings(self, stage: str) -> list[Sampling]:
        """As of every module; a training also samples its rollouts."""
        return [*super().samplings(stage), *([self.sampling] if stage == "fit" else [])]

    def policies(self) -> list[Policy]:
        """The policy, and the reference where that is a copy."""
        return [*super().policies(), *(self.reference.policies() if self.reference else [])]

    def configure_optimizers(self) -> Any:
        """As of every module; notes the learning rates at which the rewards begin."""
        configured = super().configure_optimizers()
        optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
        self._rates = [[group["lr"] for group in optimizer.param_groups]]
        return configured

    def on_train_batch_start(self, batch: PromptBatch, batch_idx: int) -> None:
        """As of every module; sets the optimizer up for the warm start, and for the rewards after it."""
        super().on_train_batch_start(batch, batch_idx)
        step = self.trainer.global_step
        self.training_state.warm_start = self.warm_start is not None and self.warm_start.covers(step)
        if self.warm_start is not None and batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.warm_start.prepare(self.trainer.optimizers, step, self._rates)

    def after_validation(self, figures: Mapping[str, Tensor]) -> None:
        """End the warm start where validations no longer improve."""
        if self.warm_start is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self.warm_start.validated(self.trainer.global_step, float(figures["map"]))

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Advance the schedule, which begins after the warm start."""
        if self.warm_start is None or self.trainer.global_step > self.warm_start.end:
            super().lr_scheduler_step(scheduler, metric)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> Tensor:
        """One update: a rollout where this batch is new, then the loss of its completions.

        In a warm start it is the loss of the true boxes instead.

        Args:
            batch: B prompts.
            batch_idx: number of the batch in the epoch.

        Returns:
            The loss, a scalar with gradient.
        """
        if self.warm_start is not None and self.training_state.warm_start:
            return supervised_loss(self, batch, self.warm_start.settings.target_order)
        started = time.perf_counter()
        update, position = divmod(batch_idx, self.trainer.accumulate_grad_batches)
        rollouts = self.training_state.rollout_batches
        if update % self.updates_per_rollout == 0 or position not in rollouts:
            rollouts[position] = self.collect(batch)
        rollout = rollouts[position]

        sampled = time.perf_counter()
        log_probs, entropy = self.policy.log_probs(
            batch, rollout.tokens, rollout.mask, self.sampling.temperature, rollout.take_prefix()
        )
        if rollout.old_log_probs is None:
            # The first update is on policy.
            rollout.old_log_probs = log_probs.detach()
            self._log_sampler_gap(rollout.old_log_probs, rollout)
        loss, metrics = self.loss(
            PolicyTerms(
                log_probs=log_probs,
                old_log_probs=rollout.old_log_probs,
                reference_log_probs=rollout.reference_log_probs,
                advantages=rollout.advantages,
                mask=rollout.mask,
                sampler_log_probs=rollout.sampler_log_probs,
            )
        )
        seconds = {"policy_forward_seconds": time.perf_counter() - sampled, "sampling_seconds": sampled - started}
        self.training_state.timer.tokens += int(rollout.mask.sum())
        loss = loss * self.share_of(self.loss.weight(rollout.mask))
        share = self.share_of(rollout.mask.sum())
        per_token = {**metrics, "entropy": mean_where(entropy, rollout.mask)}
        figures = {name: value * share for name, value in per_token.items()}
        self._log("grpo", {**figures, "loss": loss.detach()}, len(batch))
        self._log("perf", seconds, len(batch))
        return loss

    def collect(self, batch: PromptBatch) -> RolloutBatch:
        """Sample, reward and compare completions: all that does not change while the policy is updated on them."""
        self._synchronise(batch)
        with self.gathered_weights():
            rollout, groups = self._sample_and_score(batch)
        mask = rollout.mask & rollout.finished[..., None] if self.loss.mask_truncated else rollout.mask
        started = time.perf_counter()
        reference = self._reference_log_probs(batch, rollout.tokens, mask)
        reference_seconds = time.perf_counter() - started
        advantages = self.advantage(groups)
        self._log_rollout(rollout, groups, advantages, reference_seconds)
        self.training_state.scored_groups = ScoredGroups(
            records=batch.records,
            instructions=batch.instructions,
            input_sizes=batch.input_sizes,
            texts=rollout.texts,
            detections=[match.detections for match in groups.matches],
            rewards=groups.total,
            terms=groups.terms,
            advantages=advantages.answers,
            item_advantages=advantages.items,
            box_advantages=advantages.boxes,
        )
        return RolloutBatch(
            tokens=rollout.tokens,
            mask=mask,
            advantages=self._token_advantages(batch, rollout, groups, advantages).to(rollout.tokens.device),
            sampler_log_probs=rollout.log_probs,
            reference_log_probs=reference,
            prefix=rollout.prefix if self.reuses_prefix() else None,
        )

    def _synchronise(self, batch: PromptBatch) -> None:
        """Give the sampler the present weights, and log how long that takes where it has weights of its own."""
        started = time.perf_counter()
        with self.training_state.timer.measure("rollout"):
            self.sampler.synchronise(self.policy, batch)
        if not self.sampler.computes_with_policy:
            self._log("perf", {"synchronise_seconds": time.perf_counter() - started}, len(batch))

    def _token_advantages(
        self, batch: PromptBatch, rollout: Rollout, groups: RewardedGroups, advantages: Advantages
    ) -> Tensor:
        """``[B, G]``, or ``[B, G, C]`` where boxes have advantages of their own."""
        if advantages.boxes is None:
            return advantages.answers
        tokenizer = self.processor.tokenizer
        hidden = hidden_tokens(tokenizer, batch.markers)
        tokens, lengths = rollout.tokens.flatten(0, 1).cpu(), rollout.mask.sum(-1).flatten().tolist()
        ends = [token_ends(tokenizer, row[:n].tolist(), hidden) for row, n in zip(tokens, lengths, strict=True)]
        detections = [match.detections for match in groups.matches]
        if any(len(found.item_spans) != len(found) or len(found.box_spans) != len(found) for found in detections):
            family, advantage = type(self.family).__name__, type(self.advantage).__name__
            raise UserError(
                f"{advantage}: {family}.read does not say where its boxes are in an answer; let it return"
                " Answer.item_spans and box_spans, or set model.advantage to vr1.advantage.GroupAdvantage"
            )
        return advantages.of_tokens(detections, ends, rollout.tokens.shape[-1])

    def _sample_and_score(self, batch: PromptBatch) -> tuple[Rollout, RewardedGroups]:
        """Completions and their rewards; zero-variance groups are resampled."""
        rollout = self.sample(batch)
        rewards = self.score(batch, rollout)
        for attempt in range(1, self.resample_zero_variance + 1):
            groups = zero_variance_groups(rewards.total)
            if not groups.any():
                break
            resampled = self.sample(batch, attempt, rollout.prefix)
            rewards = rewards.replaced(self.score(batch, resampled), groups)
            rollout = replace_groups(rollout, resampled, groups)
        return rollout, rewards

    def sample(self, batch: PromptBatch, attempt: int = 0, prefix: Prefix | None = None) -> Rollout:
        """Sample G completions for each of B prompts.

        Args:
            batch: B prompts.
            attempt: 0 for the first rollout of a step; 1 and more resample.
            prefix: the policy's keys and values of the prompts, from the first rollout of the step.

        Returns:
            The rollout, ``tokens`` ``[B, G, C]``.
        """
        # Each attempt at each step has its own random numbers for each record, which do not depend on the number of
        # processes: a resumed run samples the same completions.
        number = (self.seed * 1_000_003 + self.trainer.global_step) * (self.resample_zero_variance + 1) + attempt
        self.policy.eval()
        with self.training_state.timer.measure("rollout"):
            rollout = self.sampler.sample(
                self.policy, batch, self.sampling, self.processor.tokenizer, number, prefix, self.reuses_prefix()
            )
        self.policy.train()
        return rollout

    def score(self, batch: PromptBatch, rollout: Rollout) -> RewardedGroups:
        """Parse, match and reward B * G completions."""
        shape = rollout.finished.shape
        texts = [text for group in rollout.texts for text in group]
        targets = [target for target in targets_of(batch) for _ in range(shape[1])]
        with self.training_state.timer.measure("reward"):
            detections = parse_completions(batch, texts, self.family, self.reward.box_rules)
            matches = self.reward.match(detections, targets)
            output = self.reward.score(matches)
        return RewardedGroups(
            total=output.total.reshape(shape),
            terms={name: scores.reshape(shape) for name, scores in output.terms.items()},
            weights=self.reward.weights,
            matches=matches,
            criterion=self.reward.criterion,
        )

    def _reference_log_probs(self, batch: PromptBatch, tokens: Tensor, mask: Tensor) -> Tensor | None:
        """Log-probabilities ``[B, G, C]`` of the tokens under the reference; None without one."""
        if self.reference is None:
            return None
        with self.training_state.timer.measure("reference"):
            return self.reference.log_probs(batch, tokens, mask, self.sampling.temperature)

    def reuses_prefix(self) -> bool:
        """Whether the forward of the prompts that a rollout makes serves its first update too."""
        return self.policy.can_reuse_prefix(sharded=shards_weights(self.trainer.strategy))

    def _log_sampler_gap(self, log_probs: Tensor, rollout: RolloutBatch) -> None:
        """Log how far the log-probs of the training pass are from the sampler's: mean and largest difference."""
        gap = (log_probs - rollout.sampler_log_probs).abs().masked_fill(~rollout.mask, 0.0)
        share = self.share_of(rollout.mask.sum())
        mean = mean_where(gap, rollout.mask)
        self._log("grpo", {"sampler_gap": mean * share, "sampler_gap_max": gap.max()}, len(rollout.tokens))
        # With dropout, the training pass differs from every sampler.
        if not self.policy.has_dropout:
            self.sampler.check_gap(float(mean), self.sampling)

    def _log_rollout(
        self, rollout: Rollout, rewards: RewardedGroups, advantages: Advantages, reference_seconds: float
    ) -> None:
        """Log rewards, answer lengths and times of completions that are trained on."""
        size, tokens = len(rollout.texts), float(rollout.mask.sum())
        for name, metric in self.reward.update_means(rewards.total, rewards.terms).items():
            self.log(f"reward/{name}", metric, batch_size=size)
        self._log(
            "grpo",
            {
                "zero_variance_groups": zero_variance_groups(rewards.total).float().mean(),
                "reward_std": rewards.total.std(dim=1).mean(),
                "completion_tokens": tokens / rollout.finished.numel(),
                "truncated": (~rollout.finished).float().mean(),
                "problems": sum(len(match.detections.problems) for match in rewards.matches) / rollout.finished.numel(),
                **advantages.metrics(),
            },
            size,
        )
        parts = {f"{part}_seconds": value for part, value in rollout.seconds.items()}
        rate = tokens / sum(rollout.seconds.values())
        self._log("perf", {"tokens_per_second": rate, "reference_seconds": reference_seconds, **parts}, size)

    def _log(self, group: str, values: dict[str, Any], batch_size: int) -> None:
        named = {f"{group}/{name}": float(value) for name, value in values.items()}
        self.log_dict(named, batch_size=batch_size, sync_dist=self.trainer.world_size > 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also store rollouts that are not used up: those of all processes, since one of them writes the file."""
        super().on_save_checkpoint(checkpoint)
        if self.warm_start is not None:
            checkpoint["vr1_warm_start"] = self.warm_start.state_dict()
        if self.updates_per_rollout > 1:
            own = [rollout.state_dict() for _, rollout in sorted(self.training_state.rollout_batches.items())]
            # From a list for each process to a list for each batch, in the order of the prompts.
            checkpoint["vr1_rollouts"] = [list(pieces) for pieces in zip(*gather(own), strict=True)]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also read this process's share of the rollouts that were not used up."""
        super().on_load_checkpoint(checkpoint)
        if self.warm_start is not None and "vr1_warm_start" in checkpoint:
            self.warm_start.load_state_dict(checkpoint["vr1_warm_start"])
        stored, share = checkpoint.get("vr1_rollouts", []), data_share(self.trainer)
        if not stored or self.trainer.state.fn != TrainerFn.FITTING:
            return
        pieces = reshard_rollouts(stored, self.trainer.accumulate_grad_batches, share.world)
        self.training_state.rollout_batches = {
            position: RolloutBatch.from_state(row[share.rank], self.device) for position, row in enumerate(pieces)
        }


def replace_groups(rollout: Rollout, resampled: Rollout, groups: Tensor) -> Rollout:
    """A rollout with the groups of another where the mask ``groups`` ``[B]`` is true."""
    length = max(rollout.tokens.shape[-1], resampled.tokens.shape[-1])

    def pad(values: Tensor) -> Tensor:
        return torch.nn.functional.pad(values, (0, length - values.shape[-1]))

    rows = groups.to(rollout.tokens.device)
    return Rollout(
        tokens=torch.where(rows[:, None, None], pad(resampled.tokens), pad(rollout.tokens)),
        mask=torch.where(rows[:, None, None], pad(resampled.mask), pad(rollout.mask)),
        finished=torch.where(rows[:, None], resampled.finished, rollout.finished),
        log_probs=torch.where(rows[:, None, None], pad(resampled.log_probs), pad(rollout.log_probs)),
        texts=[
            new if is_new else old
            for old, new, is_new in zip(rollout.texts, resampled.texts, groups.tolist(), strict=True)
        ],
        seconds={part: value + resampled.seconds[part] for part, value in rollout.seconds.items()},
        prefix=rollout.prefix,
    )
