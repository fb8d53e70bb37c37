"""GRPO for detection: sample -> parse -> match -> reward -> advantage -> loss.

Shape letters: B prompts, G group size, C completion tokens.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from vr1.advantage import AdvantageEstimator, GroupAdvantage, RewardedGroups, zero_variance_groups
from vr1.checkpoints.state import is_within_step, reshard_rollouts
from vr1.data.accumulation import batches_left, batches_per_step
from vr1.distributed import data_share, gather
from vr1.errors import UserError
from vr1.losses import GRPO, PolicyLoss, PolicyTerms
from vr1.modules.base import mean_where
from vr1.modules.evaluation import read_rollout, targets_of
from vr1.modules.figures import StepTimes, on_device, times_are_read
from vr1.modules.sft import supervised_loss
from vr1.modules.supervised_term import SupervisedTerm, append_answers
from vr1.modules.token_advantages import token_advantages
from vr1.modules.warm_start import WarmStart, WarmStartedModule
from vr1.policy.policy import Policy
from vr1.policy.reference import Reference
from vr1.prompts import PromptBatch
from vr1.rollout.batching import (
    consecutive,
    join_prompts,
    replace_groups,
    select_prefix,
    select_prompts,
    select_rollout,
    split_rollout,
)
from vr1.rollout.sampling import Sampling
from vr1.seeding import run_seed
from vr1.strategies import shards_weights
from vr1.types import Prefix, Rollout, RolloutBatch, ScoredGroups

# Completions of a batch, their rewards, and the image features of its prompts where these are fixed.
_Sampled = tuple[Rollout, RewardedGroups, tuple[Tensor, ...]]


class GRPOModule(WarmStartedModule):
    """Vision-R1: group relative policy optimisation with rewards computed from boxes.

    Args:
        sampling: group size, temperature and length of the rollouts.
        advantage: how rewards become advantages; None takes that of the paper, `vr1.advantage.GroupAdvantage`.
        loss: which member of the GRPO family, with ``kl_coef`` and the clip range; None takes GRPO.
        updates_per_rollout: optimizer steps made from each rollout.
        resample_zero_variance: how many times to resample zero-variance groups, in which all rewards are equal.
        warm_start: supervised training before the first rollout; None has none.
        supervised: a supervised term beside the loss of the rewards; None has none.
        seed: seed of the rollouts; None takes that of ``seed_everything``.
        **kwargs: settings of `vr1.modules.base.DetectionModule`.

    Raises:
        UserError: a group of one completion (nothing to compare), a sampling temperature of 0, or a warm start with a
            KL term: its reference would be the model before the warm start; or a loss with a correction and ``top_p``
            below 1.

    Source: Vision-R1, arXiv 2503.18013.
    """

    samples_whole_steps = True

    def __init__(
        self,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen dataclasses are safe to share
        advantage: AdvantageEstimator | None = None,
        loss: PolicyLoss | None = None,
        updates_per_rollout: int = 1,
        resample_zero_variance: int = 0,
        warm_start: WarmStart | None = None,
        supervised: SupervisedTerm | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(warm_start=warm_start, **kwargs)
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
        self.advantage, self.supervised = advantage or GroupAdvantage(), supervised
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
        self._is_trained = True
        # Completions of batches whose turn comes later in the optimizer step.
        self._sampled: deque[_Sampled] = deque()
        self._times = StepTimes()

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
        update, position = divmod(batch_idx, self.trainer.accumulate_grad_batches)
        rollouts = self.training_state.rollout_batches
        if position == 0:
            self._times.clear()
            if update % self.updates_per_rollout == 0:
                rollouts.clear()
                self._sampled.clear()
        if position not in rollouts:
            left = batches_left(self.trainer, batch_idx)
            with self._times.measure("sampling"):
                rollouts[position] = self.collect(replace(batch, following=batch.following[: left - 1]))
        rollout = rollouts[position]
        prompts = replace(batch, image_features=rollout.image_features)
        if (update + 1) % self.updates_per_rollout == 0:
            rollout.image_features = ()

        with self._times.measure("policy_forward"):
            log_probs, entropy, supervised_term = self._forward(prompts, rollout)
            if rollout.old_log_probs is None:
                # The first update is on policy.
                rollout.old_log_probs = log_probs.detach()
                self._add_sampler_gap(rollout.old_log_probs, rollout)
            loss, metrics = self.loss(
                PolicyTerms(
                    log_probs=log_probs,
                    old_log_probs=rollout.old_log_probs,
                    reference_log_probs=rollout.reference_log_probs,
                    advantages=rollout.advantages,
                    mask=rollout.mask,
                    sampler_log_probs=rollout.sampler_log_probs,
                    entropy=entropy,
                )
            )
        self.training_state.timer.add_tokens(rollout.mask.sum())
        loss = loss * self.share_of(self.loss.weight(rollout.mask))
        per_token = {**metrics, "entropy": mean_where(entropy, rollout.mask)}
        self.step_figures.add("grpo", per_token, rollout.mask.sum())
        # Of each batch, and of each process, the gradient counts the same.
        self.step_figures.add("grpo", {"loss": loss})
        if times_are_read(self.trainer, batch_idx, self.device):
            self._log_times(len(batch))
        return loss + supervised_term

    def _forward(self, prompts: PromptBatch, rollout: RolloutBatch) -> tuple[Tensor, Tensor, Tensor | float]:
        """Log-probs and entropies ``[B, G, C]`` of the completions, and the supervised term of the loss."""
        (_, group, length), tokens, mask = rollout.tokens.shape, rollout.tokens, rollout.mask
        if self.supervised is not None:
            answers = self.encoder.targets(prompts, self.policy.eos_tokens[0], self.supervised.target_order)
            tokens, mask, cut = append_answers(tokens, mask, *answers, self.sampling.max_new_tokens)
        log_probs, entropy = self.policy.log_probs(
            prompts, tokens, mask, self.sampling.temperature, rollout.take_prefix(), self.loss.entropy_coef > 0
        )
        term: Tensor | float = 0.0
        if self.supervised is not None:
            mask = mask[:, group:]
            loss = -mean_where(log_probs[:, group:], mask) * self.share_of(mask.sum())
            self.step_figures.add("grpo", {"supervised_loss": loss, "supervised_cut": cut})
            term = self.supervised.weight * loss
        return log_probs[:, :group, :length], entropy[:, :group, :length], term

    def collect(self, batch: PromptBatch) -> RolloutBatch:
        """Sample, reward and compare completions: all that does not change while the policy is updated on them.

        Completions of the batches that follow in the same optimizer step are sampled and rewarded together with those
        of the first, since they are sampled with the same weights; the rest is done for each batch by itself.

        Args:
            batch: B prompts, with the batches that follow.
        """
        if not self._sampled:
            self._sampled.extend(self._sample_step([batch, *batch.following]))
        rollout, groups, image_features = self._sampled.popleft()
        assert len(rollout.tokens) == len(batch), "completions of another batch"
        mask = rollout.mask & rollout.finished[..., None] if self.loss.mask_truncated else rollout.mask
        with self._times.measure("reference"):
            prompts = replace(batch, image_features=image_features)
            reference = self._reference_log_probs(prompts, rollout.tokens, mask)
        advantages = self.advantage(groups)
        self.reward.update_means(groups.total, groups.terms)
        self.step_figures.add_rollout(rollout, groups, advantages)
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
        of_tokens = token_advantages(advantages, groups, rollout.tokens.shape[-1], self.family, self.advantage)
        return RolloutBatch(
            tokens=rollout.tokens,
            mask=mask,
            advantages=of_tokens.to(rollout.tokens.device),
            sampler_log_probs=rollout.log_probs,
            reference_log_probs=reference,
            prefix=rollout.prefix if self.reuses_prefix() else None,
            image_features=image_features,
        )

    def _sample_step(self, batches: Sequence[PromptBatch]) -> list[_Sampled]:
        """Completions and their rewards for each batch of an optimizer step, sampled together."""
        self._synchronise(batches[0])
        sampled: list[tuple[Rollout, RewardedGroups]] = []
        with self.gathered_weights():
            joined, image_features = self._with_image_features(batches)
            for prompts, sizes in joined:
                rollout, groups = self._sample_and_score(prompts)
                self._times.add_rollout(rollout)
                own = [groups.select(rows) for rows in consecutive(sizes)]
                sampled += zip(split_rollout(rollout, sizes), own, strict=True)
        return [(*one, image) for one, image in zip(sampled, image_features, strict=True)]

    def _with_image_features(
        self, batches: Sequence[PromptBatch]
    ) -> tuple[list[tuple[PromptBatch, list[int]]], list[tuple[Tensor, ...]]]:
        """The batches joined, as `join_prompts` returns them, and the image features of each where these are fixed.

        Features are computed for each batch by itself, as it is trained on; processes may join different ones.
        """
        with self.training_state.timer.measure("rollout") as interval:
            moved = [self.policy.with_image_features(batch.to(self.device)) for batch in batches]
        image_features = [batch.image_features for batch in moved]
        if any(image_features):
            self._times.add("vision", interval)
        return join_prompts(moved), image_features

    def _synchronise(self, batch: PromptBatch) -> None:
        """Give the sampler the present weights, and note how long that takes where it has weights of its own."""
        with self.training_state.timer.measure("rollout") as interval:
            self.sampler.synchronise(self.policy, batch)
        if not self.sampler.computes_with_policy:
            self._times.add("synchronise", interval)

    def _sample_and_score(self, batch: PromptBatch) -> tuple[Rollout, RewardedGroups]:
        """Completions and their rewards; zero-variance groups are resampled."""
        rollout = self.sample(batch)
        rewards = self.score(batch, rollout)
        for attempt in range(1, self.resample_zero_variance + 1):
            groups = zero_variance_groups(rewards.total)
            if not groups.any():
                break
            rows = groups.nonzero()[:, 0].tolist()
            some, prefix = batch, rollout.prefix
            if len(rows) < len(batch):
                some, prefix = select_prompts(batch, rows), prefix and select_prefix(prefix, rows)
            resampled = self.sample(some, attempt, prefix)
            # In the places of their groups; what stands in the others is not taken.
            places = (groups.cumsum(0) - 1).clamp(min=0).tolist()
            rewards = rewards.replaced(self.score(some, resampled).select(places), groups)
            resampled = select_rollout(resampled, places)
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
        targets = [target for target in targets_of(batch) for _ in range(shape[1])]
        with self.training_state.timer.measure("reward"):
            rules = self.reward.box_rules
            detections = read_rollout(batch, rollout, self.family, self.processor.tokenizer, rules)
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
        """Whether the forward of the prompts that a rollout makes serves its first update too.

        Not if the rollout is that of several batches, whose activations would be kept until the last is trained on.
        """
        if self.trainer.accumulate_grad_batches > 1:
            return False
        return self.policy.can_reuse_prefix(sharded=shards_weights(self.trainer.strategy))

    def _add_sampler_gap(self, log_probs: Tensor, rollout: RolloutBatch) -> None:
        """Add how far the log-probs of the training pass are from the sampler's: mean and largest difference."""
        gap = (log_probs - rollout.sampler_log_probs).abs().masked_fill(~rollout.mask, 0.0)
        mean = mean_where(gap, rollout.mask)
        self.step_figures.add("grpo", {"sampler_gap": mean}, rollout.mask.sum())
        self.step_figures.add_maxima("grpo", {"sampler_gap_max": gap.max()})
        # With dropout, the training pass differs from every sampler.
        if not self.policy.has_dropout:
            self.sampler.check_gap(mean, self.sampling)

    def _log_times(self, batch_size: int) -> None:
        """Log the times of the step so far."""
        times = {f"perf/{name}": value for name, value in self._times.figures().items()}
        self.log_dict(on_device(times, self.device), batch_size=batch_size, sync_dist=self.trainer.world_size > 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also store rollouts that are not used up: those of all processes, since one of them writes the file."""
        super().on_save_checkpoint(checkpoint)
        if self.updates_per_rollout > 1:
            own = [rollout.state_dict() for _, rollout in sorted(self.training_state.rollout_batches.items())]
            # From a list for each process to a list for each batch, in the order of the prompts.
            checkpoint["vr1_rollouts"] = [list(pieces) for pieces in zip(*gather(own), strict=True)]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also read this process's share of the rollouts that were not used up.

        Within the first update from a rollout they are those of the batches that were trained on; completions of the
        others are sampled again, and are the same.
        """
        super().on_load_checkpoint(checkpoint)
        stored, share = checkpoint.get("vr1_rollouts", []), data_share(self.trainer)
        if not stored or self.trainer.state.fn != TrainerFn.FITTING:
            return
        window = batches_per_step(self.trainer, checkpoint["epoch"])
        if is_within_step(checkpoint):
            window = min(window, len(stored))
        pieces = reshard_rollouts(stored, window, share.world)
        self.training_state.rollout_batches = {
            position: RolloutBatch.from_state(row[share.rank], self.device) for position, row in enumerate(pieces)
        }
