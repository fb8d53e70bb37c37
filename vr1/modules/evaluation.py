"""Evaluation without a trainer: greedy answers of a policy, their boxes and rewards, and the metrics over all of them.

Shape letters: B prompts, G group size, C completion tokens, N predicted boxes.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vr1.boxes import BoxRules
from vr1.detections import box_scores, read_detections, token_ends
from vr1.families import Family
from vr1.metrics import AnswerStatistics, CocoMetrics
from vr1.metrics.answer_file import ScoredCompletion
from vr1.metrics.answer_schema import QuestionKey, question_key
from vr1.policy.policy import Policy
from vr1.prompts import PromptBatch
from vr1.rewards import MeanScore, Reward
from vr1.rollout.generate import hidden_tokens
from vr1.rollout.sampler import Sampler, SharedPrefixSampler
from vr1.rollout.sampling import Sampling
from vr1.types import SCORE, DetectionRecord, Detections, Prediction, Rollout, Span, Targets

# The figures of COCO that a validation during training logs; a test logs all of them.
_MAIN_METRICS = ("map", "map_50", "map_75", "ar_100", "accuracy_50")
# The figures that depend on the scores of the boxes.
_RANKED_METRICS = ("map", "map_50", "map_75")


def parse_completions(
    prompts: PromptBatch, texts: Sequence[str], family: Family, rules: BoxRules | None = None
) -> list[Detections]:
    """The boxes of completions in pixels of their images.

    Args:
        prompts: B prompts.
        texts: B * G completions, those of the first prompt first.
        family: reads its answer format.
        rules: for boxes outside the image and swapped corners, those of the reward; None clips and orders them.

    Returns:
        B * G detections in the same order.
    """
    group = len(texts) // len(prompts)
    asked = [record for record in zip(prompts.records, prompts.input_sizes, strict=True) for _ in range(group)]
    return [
        read_detections(text, family, record.image_size, input_size, rules, record.categories)
        for text, (record, input_size) in zip(texts, asked, strict=True)
    ]


def read_rollout(
    prompts: PromptBatch, rollout: Rollout, family: Family, tokenizer: Any, rules: BoxRules | None = None
) -> list[Detections]:
    """The boxes of a rollout's completions, each with the probability of its tokens as its score.

    Args:
        prompts: B prompts.
        rollout: G completions for each.
        family: reads its answer format.
        tokenizer: of transformers.
        rules: as in `parse_completions`.

    Returns:
        B * G detections with their ``token_ends``, those of the first prompt first. Boxes of a family that records no
        positions have the score of the full completion.
    """
    found = parse_completions(prompts, [text for group in rollout.texts for text in group], family, rules)
    ends = _token_ends(rollout.tokens.flatten(0, 1), rollout.mask.flatten(0, 1), tokenizer, prompts.markers)
    log_probs = rollout.log_probs.flatten(0, 1).cpu().double().numpy()
    return [
        replace(one, scores=_scores(one.box_spans, len(one), own, log_probs[row]), token_ends=tuple(own))
        for row, (one, own) in enumerate(zip(found, ends, strict=True))
    ]


def _token_ends(tokens: Tensor, mask: Tensor, tokenizer: Any, markers: Collection[int]) -> list[list[int]]:
    """Where the tokens of completions ``[R, C]`` end in their texts, for each completion its own number of them."""
    hidden = hidden_tokens(tokenizer, markers)
    rows = zip(tokens.cpu(), mask.sum(-1).tolist(), strict=True)
    return [token_ends(tokenizer, row[:length].tolist(), hidden) for row, length in rows]


def _scores(
    spans: Sequence[Span], boxes: int, ends: Sequence[int], log_probs: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The scores of boxes at these positions in a completion, or, without positions, that of the full completion."""
    return box_scores(spans or [None] * boxes, ends, log_probs[: len(ends)])


def targets_of(prompts: PromptBatch) -> list[Targets]:
    """Ground truth of each of B prompts in image pixels, without crowd regions: they are neither targets nor errors."""
    targets = []
    for record in prompts.records:
        rows = ~record.crowd
        labels = tuple(label for label, is_target in zip(record.labels, rows, strict=True) if is_target)
        targets.append(Targets(boxes_xyxy=record.boxes_xyxy[rows], labels=labels))
    return targets


def answer_prompts(
    policy: Policy,
    prompts: PromptBatch,
    sampling: Sampling,
    tokenizer: Any,
    family: Family,
    sampler: Sampler | None = None,
) -> list[ScoredCompletion]:
    """One completion for each prompt, with a score for each of its boxes.

    Args:
        policy: the model.
        prompts: B prompts.
        sampling: settings of evaluation, as a rule greedy; of a group the first completion counts.
        tokenizer: decodes the tokens.
        family: reads the boxes.
        sampler: samples; None takes `SharedPrefixSampler`.

    Returns:
        B answers.
    """
    rollout = (sampler or SharedPrefixSampler()).sample(policy, prompts, sampling, tokenizer)
    log_probs = rollout.log_probs[:, 0].cpu().double().numpy()
    ends = _token_ends(rollout.tokens[:, 0], rollout.mask[:, 0], tokenizer, prompts.markers)
    answers = []
    for row, ((text, *_), own) in enumerate(zip(rollout.texts, ends, strict=True)):
        answer = family.read(text)
        scores = _scores(answer.box_spans, len(answer.boxes), own, log_probs[row])
        answers.append(ScoredCompletion(completion=text, scores=tuple(scores.tolist())))
    return answers


def complete_answers(
    prompts: PromptBatch,
    recorded: Mapping[QuestionKey, ScoredCompletion],
    answer: Callable[[PromptBatch], list[ScoredCompletion]],
    encode: Callable[[list[DetectionRecord]], PromptBatch],
) -> list[ScoredCompletion]:
    """Recorded answers where there are some, and new ones to the other prompts.

    Args:
        prompts: B prompts.
        recorded: answers by question.
        answer: answers prompts.
        encode: makes prompts of records, on the policy's device.

    Returns:
        B answers.
    """
    questions = zip(prompts.records, prompts.instructions, prompts.input_sizes, strict=True)
    answers = [recorded.get(question_key(*question)) for question in questions]
    missing = [row for row, known in enumerate(answers) if known is None]
    if missing:
        unanswered = prompts if len(missing) == len(prompts) else encode([prompts.records[row] for row in missing])
        for row, new in zip(missing, answer(unanswered), strict=True):
            answers[row] = new
    return [known for known in answers if known is not None]


def predictions_of(
    prompts: PromptBatch, answers: Sequence[ScoredCompletion], family: Family, reward: Reward
) -> list[Prediction]:
    """Parse, match and reward one answer for each of B prompts.

    The scores of an answer replace the constant ones if there is one for each box.
    """
    texts = [answer.completion for answer in answers]
    detections = [
        replace(parsed, scores=np.asarray(answer.scores)) if len(answer.scores or ()) == len(parsed) > 0 else parsed
        for answer, parsed in zip(answers, parse_completions(prompts, texts, family, reward.box_rules), strict=True)
    ]
    output = reward(detections, targets_of(prompts))
    rewards = {**output.terms, "total": output.total}
    return [
        Prediction(
            record=record,
            instruction=instruction,
            completion=text,
            detections=parsed,
            match=match,
            rewards={name: float(values[row]) for name, values in rewards.items()},
        )
        for row, (record, instruction, text, parsed, match) in enumerate(
            zip(prompts.records, prompts.instructions, texts, detections, output.matches, strict=True)
        )
    ]


class EvaluationMetrics(nn.Module):
    """COCO metrics, answer statistics and mean rewards over all predictions of an evaluation, of all processes.

    COCO's metrics are computed twice: with the constant score of all released evaluations of this method, and as
    ``map_ranked``, ``map_50_ranked`` and ``map_75_ranked`` with the scores of the predictions.

    Args:
        terms: names of the reward terms.
    """

    def __init__(self, terms: Sequence[str]) -> None:
        super().__init__()
        self.coco, self.ranked = CocoMetrics(), CocoMetrics()
        self.answers, self.reward = AnswerStatistics(), MeanScore()
        self.terms = nn.ModuleDict({name: MeanScore() for name in terms})

    def update(self, predictions: Sequence[Prediction]) -> None:
        """Add predictions."""
        detections, records = [item.detections for item in predictions], [item.record for item in predictions]
        self.coco.update([replace(found, scores=np.full(len(found), SCORE)) for found in detections], records)
        self.ranked.update(detections, records)
        self.answers.update([item.match for item in predictions])
        for name, metric in self._rewards().items():
            metric.update(torch.tensor([item.rewards[name] for item in predictions]))

    def compute(self, every_figure: bool) -> dict[str, Tensor]:
        """Figures by name; of several data sets each one's (``name/map``) and their average.

        Args:
            every_figure: all of COCO's figures rather than the main ones.
        """
        coco = self.coco.compute()
        shown = {name: value for name, value in coco.items() if every_figure or name.split("/")[-1] in _MAIN_METRICS}
        rewards = {
            "reward" if name == "total" else f"reward_{name}": metric.compute()
            for name, metric in self._rewards().items()
        }
        ranked = {
            f"{name}_ranked": value
            for name, value in self.ranked.compute().items()
            if name.split("/")[-1] in _RANKED_METRICS
        }
        return {**rewards, **shown, **ranked, **self.answers.compute()}

    def per_class(self) -> dict[str, dict[str, float]]:
        """COCO's figures by class, with the constant score; on one process, after `compute` on all of them."""
        return self.coco.per_class()

    def reset(self) -> None:
        """Forget all predictions."""
        for metric in (self.coco, self.ranked, self.answers, *self._rewards().values()):
            metric.reset()

    def _rewards(self) -> dict[str, MeanScore]:
        terms = {name: metric for name, metric in self.terms.items() if isinstance(metric, MeanScore)}
        return {**terms, "total": self.reward}
