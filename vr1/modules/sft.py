"""Supervised fine-tuning: the baseline of the paper, and how the embedded model was made."""

from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from vr1.modules.base import DetectionModule, mean_where
from vr1.optimizers import named_lambdas
from vr1.prompts import PromptBatch


@named_lambdas
class SFTModule(DetectionModule):
    """Maximum likelihood of the ground truth, written in the family's answer format.

    The same prompts, forward and evaluation as `GRPOModule`: a supervised answer is a group of one completion.

    Args:
        target_order: order of the boxes in the answer: ``annotated``, or ``sorted`` by their left edge.
        optimizer: optimizer over the trainable parameters; AdamW without weight decay, at the learning rate of full
            fine-tuning.
        **kwargs: settings of `DetectionModule`.

    Source: the SFT baseline of Vision-R1, arXiv 2503.18013, section 4.
    """

    def __init__(
        self,
        target_order: Literal["annotated", "sorted"] = "annotated",
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=2e-6, weight_decay=0.0),
        **kwargs: Any,
    ) -> None:
        super().__init__(optimizer=optimizer, **kwargs)
        self.target_order = target_order

    @property
    def objective(self) -> str:
        """``sft``."""
        return "sft"

    def training_step(self, batch: PromptBatch, batch_idx: int) -> Tensor:
        """Mean negative log-probability of the answers' tokens."""
        return supervised_loss(self, batch, self.target_order)


def supervised_loss(module: DetectionModule, batch: PromptBatch, order: Literal["annotated", "sorted"]) -> Tensor:
    """Mean negative log-probability of the tokens of the true boxes, written as the family writes them.

    Adds it to the figures of the step.

    Args:
        module: the module that is trained.
        batch: B prompts.
        order: order of the boxes in an answer.

    Returns:
        A scalar with gradient.
    """
    tokens, mask = module.encoder.targets(batch, module.policy.eos_tokens[0], order)
    log_probs, entropy = module.policy.log_probs(batch, tokens, mask)
    loss = -mean_where(log_probs, mask) * module.share_of(mask.sum())
    module.training_state.timer.add_tokens(mask.sum())
    module.step_figures.add("sft", {"loss": loss})
    module.step_figures.add("sft", {"entropy": mean_where(entropy, mask)}, mask.sum())
    module.step_figures.add("sft", {"tokens": mask.sum() / len(batch)}, len(batch))
    return loss
