"""Supervised fine-tuning: the baseline of the paper, and how the embedded model was made."""

from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from vr1.families import Family
from vr1.modules.base import DetectionModule, mean_where
from vr1.policy.loading import PolicySource
from vr1.prompts import PromptBatch
from vr1.rewards import Reward
from vr1.rollout.sampling import Sampling


class SFTModule(DetectionModule):
    """Maximum likelihood of the ground truth, written as the family writes answers.

    The same prompts, forward and evaluation as `GRPOModule`: a supervised answer is a group of one completion.

    Args:
        policy: which model, and how to load it.
        family: how the model is asked and how it answers; None takes the model's own.
        reward: reward terms that evaluation reports.
        evaluation: how completions are drawn in evaluation; greedy.
        max_prompt_tokens: longest prompt, image tokens included; longer ones are refused, never cut.
        target_order: boxes as ``annotated``, or ``sorted`` by their left edge.
        optimizer: optimizer over the trainable parameters.
        lr_scheduler: learning-rate schedule per optimizer step; None keeps the rate.
        box_scores: score of each box in evaluation: ``constant`` (0.99, as in all released evaluations of this method)
            or ``log_probs``, the probability of the tokens that the box is written in; see `vr1.detections`.

    Source: the SFT baseline of Vision-R1, arXiv 2503.18013, section 4.
    """

    def __init__(
        self,
        policy: PolicySource = PolicySource(),  # noqa: B008 - a frozen dataclass is safe to share
        family: Family | None = None,
        reward: Reward | None = None,
        evaluation: Sampling = Sampling(group_size=1, temperature=0.0),  # noqa: B008
        max_prompt_tokens: int = 1024,
        target_order: Literal["annotated", "sorted"] = "annotated",
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        box_scores: Literal["constant", "log_probs"] = "constant",
    ) -> None:
        super().__init__(policy, family, reward, evaluation, max_prompt_tokens, optimizer, lr_scheduler, box_scores)
        self.target_order = target_order

    def training_step(self, batch: PromptBatch, batch_idx: int) -> Tensor:
        """Mean negative log-probability of the answers' tokens."""
        tokens, mask = self.encoder.targets(batch, self.policy.eos_tokens[0], self.target_order)
        log_probs, entropy = self.policy.log_probs(batch, tokens, mask)
        share = self.share_of(mask.sum())
        loss = -mean_where(log_probs, mask) * share
        self.training_state.timer.tokens += int(mask.sum())
        self.log_dict(
            {
                "sft/loss": loss.detach(),
                "sft/entropy": mean_where(entropy, mask) * share,
                "sft/tokens": mask.sum() / len(batch),
            },
            prog_bar=True,
            sync_dist=self.trainer.world_size > 1,
        )
        return loss
