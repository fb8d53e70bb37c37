"""60 faults by somebody who had read the package, but neither the other lists of faults nor what the tests assert.

The tests of a fault are the files that mirror its module; faults in what a training computes also have the two tests
that check a training as a whole.
"""

from tests.mutants.faults import Fault

_WHOLE = ("tests/test_reference_training.py", "tests/test_baseline.py")
_LOSSES = ("tests/test_losses.py", "tests/test_losses_ragged.py", "tests/test_losses_trl.py", *_WHOLE)
_ADVANTAGE = ("tests/test_advantage.py", "tests/modules/test_box_advantage.py", *_WHOLE)
_REWARD_BASE = ("tests/rewards/test_base.py", "tests/rewards/test_paper.py", "tests/rewards/test_exact_scores.py")
_MATCHING = ("tests/test_matching.py", "tests/rewards/test_reward.py", "tests/modules/test_box_advantage.py")
_DETECTIONS = ("tests/test_detections.py", "tests/test_box_scores.py")
_SHARED = ("tests/rollout/test_shared.py", "tests/rollout/test_generate.py", "tests/rollout/test_sampling.py")
_CACHE = ("tests/rollout/test_cache.py", "tests/rollout/test_decoder.py", "tests/griffon/test_model.py")
_POLICY = ("tests/policy/test_policy.py", "tests/policy/test_architectures.py", "tests/policy/test_several_images.py")
_GRPO = ("tests/modules/test_grpo.py", "tests/modules/test_training.py", *_WHOLE)
_WARM_START = ("tests/modules/test_warm_start.py",)
_EVALUATION = (
    "tests/modules/test_base.py",
    "tests/modules/test_fallback_scores.py",
    "tests/metrics/test_evaluation.py",
)
_COCO = ("tests/metrics/test_coco.py", "tests/metrics/test_evaluation.py")
_SCHEDULE = ("tests/callbacks/test_rule_refinement.py",)

FAULTS = [
    # Losses
    Fault(
        "vr1/losses.py",
        "clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)",
        "clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_low)",
        _LOSSES,
    ),
    Fault(
        "vr1/losses.py",
        "(terms.old_log_probs - terms.sampler_log_probs)",
        "(terms.sampler_log_probs - terms.old_log_probs)",
        _LOSSES,
    ),
    Fault(
        "vr1/losses.py",
        "ratio.detach().clamp(max=1 + self.clip_high) * advantages",
        "ratio.detach().clamp(1 - self.clip_low, 1 + self.clip_high) * advantages",
        _LOSSES,
    ),
    # Advantages
    Fault(
        "vr1/advantage.py",
        "answers=total / (total.std() + self.epsilon)",
        "answers=total / (total.std(dim=1, keepdim=True) + self.epsilon)",
        _ADVANTAGE,
    ),
    Fault(
        "vr1/advantage.py",
        'if self.scale == "group" else rewards.std()',
        "if self.scale else rewards.std()",
        _ADVANTAGE,
    ),
    Fault(
        "vr1/advantage.py",
        "(missed_values.mean() - missed_values) / scale",
        "(missed_values - missed_values.mean()) / scale",
        _ADVANTAGE,
    ),
    Fault(
        "vr1/advantage.py",
        "after = bisect_right(ends, item_span[1])",
        "after = bisect_right(ends, item_span[1] - 1)",
        _ADVANTAGE,
    ),
    Fault(
        "vr1/advantage.py",
        "_compare([match.box_overlap for match in matches]",
        "_compare([match.overlap for match in matches]",
        _ADVANTAGE,
    ),
    # Rewards
    Fault(
        "vr1/rewards/paper.py",
        "return differentiate(hits / match.num_targets,",
        "return differentiate(hits / max(match.num_targets, match.num_predicted),",
        ("tests/rewards/test_paper.py", "tests/rewards/test_exact_scores.py"),
    ),
    Fault("vr1/rewards/base.py", "    if value < xi1:", "    if value <= xi1:", _REWARD_BASE),
    Fault(
        "vr1/rewards/overlap.py",
        "unmatched[:, best] = -1.0",
        "unmatched[row, best] = -1.0",
        ("tests/rewards/test_overlap.py", "tests/rewards/test_exact_scores.py"),
    ),
    Fault(
        "vr1/rewards/text.py",
        "/ (self.none_from - self.full_until)",
        "/ self.none_from",
        ("tests/rewards/test_text.py", "tests/rewards/test_exact_scores.py"),
    ),
    # Matching, boxes and detections
    Fault(
        "vr1/matching.py",
        "                overlap = overlap * agree[predicted, target]",
        "                overlap = box_overlap = overlap * agree[predicted, target]",
        _MATCHING,
    ),
    Fault("vr1/boxes.py", "boxes = np.trunc(boxes)", "boxes = np.floor(boxes)", ("tests/test_boxes.py", *_DETECTIONS)),
    Fault(
        "vr1/detections.py",
        "valid=complete and inside and all(map(str.strip, labels)),",
        "valid=complete and inside,",
        _DETECTIONS,
    ),
    Fault(
        "vr1/detections.py",
        "scores.append(float(np.exp(own.mean())) if len(own)",
        "scores.append(float(np.exp(own).mean()) if len(own)",
        _DETECTIONS,
    ),
    Fault(
        "vr1/detections.py",
        "if family.implies_label and len(categories) == 1:",
        "if family.implies_label and len(categories) >= 1:",
        (*_DETECTIONS, "tests/families/test_families.py", "tests/families/test_json_answer.py"),
    ),
    # Rollouts
    Fault(
        "vr1/rollout/rows.py",
        "(sampled[:, None] != self._ends).all(1)",
        "(sampled != self._ends[0])",
        _SHARED,
    ),
    Fault(
        "vr1/rollout/cache.py",
        "scores[..., : max(scores.shape[2] - window, 0)]",
        "scores[..., : max(scores.shape[2] - window + 1, 0)]",
        _CACHE,
    ),
    Fault("vr1/rollout/cache.py", "[..., : old.shape[4], :] = old", "[..., -old.shape[4] :, :] = old", _CACHE),
    Fault(
        "vr1/rollout/linear.py",
        "up.detach().t() * scale",
        "up.detach().t()",
        ("tests/rollout/test_linear.py", "tests/rollout/test_decoder.py"),
    ),
    Fault(
        "vr1/rollout/hf_generate.py",
        "ends.long().argmax(1) + 1, tokens.shape[1])",
        "ends.long().argmax(1), tokens.shape[1])",
        ("tests/rollout/test_generate.py", "tests/rollout/test_sampler.py", "tests/modules/test_families.py"),
    ),
    # Policy
    Fault(
        "vr1/policy/policy.py",
        "masked_fill(~prompts.mask, -1).amax(dim=(0, 2)) + 1",
        "masked_fill(~prompts.mask, -1).amax(dim=(0, 2))",
        _POLICY,
    ),
    Fault(
        "vr1/policy/policy.py",
        '"image_token_id", "video_token_id", "audio_token_id"',
        '"image_token_id", "audio_token_id"',
        _POLICY,
    ),
    Fault(
        "vr1/policy/patches.py",
        "return torch.cat(results)[torch.cat(order).argsort()]",
        "return torch.cat(results)[torch.cat(order)]",
        ("tests/policy/test_patches.py", "tests/policy/test_policy.py"),
    ),
    Fault(
        "vr1/policy/loading.py",
        "lora_alpha=self.lora.alpha",
        "lora_alpha=self.lora.rank",
        ("tests/policy/test_loading.py", "tests/checkpoints/test_export.py"),
    ),
    # Prompts
    Fault(
        "vr1/prompts.py",
        "get_optimal_tiled_canvas((size[1], size[0])",
        "get_optimal_tiled_canvas((size[0], size[1])",
        ("tests/test_prompts.py", "tests/families/test_real_resize.py"),
    ),
    Fault(
        "vr1/prompts.py",
        "record.boxes_xyxy[visible].T[[1, 0]]",
        "record.boxes_xyxy[visible].T[[0, 1]]",
        ("tests/test_prompts.py", "tests/modules/test_sft.py"),
    ),
    # Modules
    Fault(
        "vr1/modules/base.py",
        "        self.metrics.reset()\n        return figures",
        "        return figures",
        _EVALUATION,
    ),
    Fault(
        "vr1/modules/evaluation.py",
        "self.coco.update([replace(found, scores=np.full(len(found), SCORE)) for found in detections], records)",
        "self.coco.update(detections, records)",
        _EVALUATION,
    ),
    # Data
    Fault(
        "vr1/data/sampler.py",
        "np.random.default_rng([self.seed, self.epoch])",
        "np.random.default_rng(self.seed)",
        ("tests/data/test_sampler.py", "tests/data/test_datamodule.py"),
    ),
    Fault(
        "vr1/data/annotated.py",
        "table.image_rows[~table.crowd], table.category_rows[~table.crowd]",
        "table.image_rows, table.category_rows",
        ("tests/data/test_annotated.py", "tests/data/test_selection.py", "tests/data/test_coco.py"),
    ),
    Fault(
        "vr1/data/images.py",
        "if orientation in (3, 4, 6, 7):",
        "if orientation in (3, 4, 6):",
        ("tests/data/test_images.py",),
    ),
    Fault(
        "vr1/data/mixture.py",
        "rest = rng.permutation(length)[: count % length]",
        "rest = np.arange(length)[: count % length]",
        ("tests/data/test_mixture.py",),
    ),
    Fault(
        "vr1/data/referring.py",
        "others, name = [*others[1:], name], others[0]",
        "others, name = [name, *others[1:]], others[0]",
        ("tests/data/test_referring.py",),
    ),
    Fault(
        "vr1/data/vision_r1.py",
        'if split != "train" else order[self.val_records :]',
        'if split != "train" else order',
        ("tests/data/test_vision_r1.py",),
    ),
    # Families
    Fault(
        "vr1/families/json_boxes.py",
        'label = labels[row] if len(labels) == len(boxes) else labels[0] if labels else ""',
        'label = labels[0] if labels else ""',
        (
            "tests/families/test_damaged_answers.py",
            "tests/families/test_json_answer.py",
            "tests/families/test_lenient_json.py",
            "tests/families/test_hard_answers.py",
        ),
    ),
    Fault(
        "vr1/families/answer_region.py",
        "thought = text.rfind(_THINK_END)",
        "thought = text.find(_THINK_END)",
        (
            "tests/families/test_damaged_answers.py",
            "tests/families/test_json_answer.py",
            "tests/families/test_item_grammar.py",
            "tests/families/test_hard_answers.py",
        ),
    ),
    # Metrics
    Fault(
        "vr1/metrics/coco.py",
        "{key: row for row, key in reversed(list(enumerate(records[:, 0].tolist())))}",
        "{key: row for row, key in enumerate(records[:, 0].tolist())}",
        _COCO,
    ),
    Fault("vr1/metrics/coco_eval.py", "np.maximum(rows[:, 5], _LEAST_AREA)", "rows[:, 5].copy()", _COCO),
    # Checkpoints
    Fault(
        "vr1/checkpoints/trained.py",
        "return str(checkpoints[-1])",
        "return str(checkpoints[0])",
        ("tests/checkpoints/test_trained.py",),
    ),
    # Callbacks
    Fault(
        "callbacks/guards.py",
        "self.above = 0 if value <= self.ceiling else self.above + 1",
        "self.above = self.above + 1 if value > self.ceiling else 0",
        ("tests/callbacks/test_guards.py",),
    ),
    Fault(
        "callbacks/schedule.py",
        "math.ceil(batches / trainer.accumulate_grad_batches)",
        "math.floor(batches / trainer.accumulate_grad_batches)",
        _SCHEDULE,
    ),
    Fault(
        "callbacks/weight_average.py",
        "state[_KEY].lerp_(parameter, 1 - self.decay)",
        "state[_KEY].lerp_(parameter, self.decay)",
        ("tests/callbacks/test_weight_average.py",),
    ),
    Fault(
        "callbacks/evaluation.py",
        "resumes = identity and resume and not finished.exists() and previous == current",
        "resumes = identity and resume and not finished.exists()",
        ("tests/callbacks/test_evaluation.py",),
    ),
    # Plan, show and Griffon-G
    Fault(
        "vr1/commands/plan/predict.py",
        "    if needs.processes > 1:",
        "    if needs.processes >= 1:",
        ("tests/commands/test_plan.py",),
    ),
    Fault(
        "vr1/commands/show/page.py",
        "overlaps[rated.match.predicted] = rated.match.box_overlap",
        "overlaps[rated.match.predicted] = rated.match.overlap",
        ("tests/commands/show/test_page.py",),
    ),
    # In the place of thirteen that stood in the earlier lists too
    Fault(
        "callbacks/guards.py",
        'return {"skipped": self.skipped, "consecutive": self.consecutive}',
        'return {"skipped": self.skipped, "consecutive": 0}',
        ("tests/callbacks/test_guards.py",),
    ),
    Fault(
        "callbacks/evaluation.py",
        "self._worst[value, -objects, name]",
        "self._worst[value, objects, name]",
        ("tests/callbacks/test_evaluation.py",),
    ),
    Fault(
        "callbacks/schedule.py",
        "step and total is not None and step >= total else",
        "step and total is not None and step > total else",
        ("tests/callbacks/test_rule_refinement.py",),
    ),
    Fault(
        "vr1/rewards/text.py",
        "text.count(tag) == 1 for tag",
        "text.count(tag) >= 1 for tag",
        ("tests/rewards/test_text.py",),
    ),
    Fault(
        "vr1/policy/loading.py",
        "image_processor.max_soft_tokens = fitting[-1]",
        "image_processor.max_soft_tokens = fitting[0]",
        ("tests/policy/test_loading.py", "tests/policy/test_architectures.py"),
    ),
    Fault(
        "vr1/data/selection.py",
        "object_counts[rows] > self.hard_above",
        "object_counts[rows] >= self.hard_above",
        ("tests/data/test_selection.py",),
    ),
    Fault(
        "vr1/data/question_text.py",
        "key=len, reverse=True)",
        "key=len)",
        ("tests/data/test_question_text.py", "tests/data/test_vision_r1.py"),
    ),
    Fault(
        "vr1/metrics/referring.py",
        "pairwise_iou(boxes[:1], true)[0, 0] >= threshold",
        "pairwise_iou(boxes[:1], true)[0, 0] > threshold",
        ("tests/metrics/test_referring.py", "tests/metrics/test_coco.py"),
    ),
    Fault(
        "vr1/metrics/statistics.py",
        "self.pairs += sum(len(match.overlap) for match in matches)",
        "self.pairs += sum(match.num_targets for match in matches)",
        ("tests/metrics/test_statistics.py",),
    ),
    Fault(
        "vr1/seeding.py",
        "    random.setstate((version, tuple(numbers), gauss))",
        "    random.getstate()",
        ("tests/checkpoints/test_resume.py",),
    ),
    Fault(
        "vr1/runs/folder.py",
        'series = _logged(folder / "metrics.csv") | series',
        'series = series | _logged(folder / "metrics.csv")',
        ("tests/runs/test_folder.py", "tests/runs/test_figures.py", "tests/commands/test_compare.py"),
    ),
    Fault(
        "vr1/commands/sweep/draw.py",
        "round(draw(generator, spec) / step) * step",
        "int(draw(generator, spec) / step) * step",
        ("tests/commands/sweep/test_draw.py",),
    ),
    Fault(
        "callbacks/completions.py",
        "first = index * len(scored.texts[index])",
        "first = index",
        ("tests/callbacks/test_completions.py",),
    ),
]
