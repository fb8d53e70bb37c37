"""Faults of the kind that a careful person makes, each with the tests that should notice it.

The source of a fault stands in its file exactly once, which `tests/mutants/test_faults.py` checks; so the list moves
with the code.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A change to one place of one file.

    Attributes:
        file: path from the root of the repository.
        source: what stands there.
        replacement: the fault.
        tests: files or node ids of pytest.
    """

    file: str
    source: str
    replacement: str
    tests: tuple[str, ...]


def _faults(file: str, tests: str | tuple[str, ...], *changes: tuple[str, str]) -> list[Fault]:
    tests = (tests,) if isinstance(tests, str) else tests
    return [Fault(file, source, replacement, tests) for source, replacement in changes]


def _restated(case: str) -> str:
    return f"tests/test_reference_training.py::test_training_equals_its_restatement[{case}]"


_TRAINING = "tests/modules/test_training.py"
_ACCUMULATION = "tests/modules/test_accumulation.py"
_RAGGED = ("tests/test_losses_ragged.py", "tests/test_losses.py")
_EXACT = "tests/rewards/test_exact_scores.py"
_C_DECODING = "tests/cpu_kernels/test_decoding.py"
_CPU_ROLLOUTS = "tests/rollout/test_cpu_rollouts.py"
_AGAIN = "tests/checkpoints/test_resume_again.py"
_SEVERAL = "tests/callbacks/test_guards_of_several.py"
_HARD = "tests/families/test_hard_answers.py"
_DAMAGED = "tests/families/test_damaged_answers.py"
_UPDATES = _restated("accumulation_and_updates")
_ADAPTERS = _restated("adapters")
_TRAINED = _restated("trained_model")
_TOP_P = _restated("top_p")
_KERNELS = "tests/rollout/test_kernels.py"
_ATTENTION = tuple(f"{_KERNELS}::test_{name}" for name in ("attention_equals_plain_loops", "rotates_and_stores"))
_CACHE = tuple(
    f"{_KERNELS}::test_{name}"
    for name in ("a_cache_by_kernels_equals_one_by_torch", "long_rollouts_while_rows_leave_and_the_cache_grows")
)
_CHOICE = "tests/rollout/test_kernel_choice.py"

FAULTS = [
    # Gradient checkpointing as far as necessary.
    *_faults(
        "vr1/policy/recomputation.py",
        "tests/policy/test_recomputation.py",
        ("[*layers[-2::-1], layers[-1]]", "list(layers)"),
        ("layer.gradient_checkpointing = True", "pass"),
        ("max(counter.total for counter in counters) / tokens", "max(counter.total for counter in counters)"),
        ("return 1 if room > 0 else 0", "return self.layers"),
        ("int(room / one) - 1", "int(room / one)"),
        ("stored.shape not in self._weights and ", ""),
        ("(weight.shape, weight.shape[::-1])", "(weight.shape,)"),
        (" not in self._seen:", " != 0:"),
        ("max(found, self.bytes_per_token or 0.0)", "found"),
        ("if weight.dtype == torch.float32", "if weight.requires_grad"),
        ("        self._end()\n", ""),
        ("return stored.detach()", "return stored"),
        ("self._hooks.__exit__(None, None, None)", "pass"),
        ("min(tokens, CHUNK)", "tokens"),
        (" and weight.grad is None", ""),
    ),
    *_faults(
        "vr1/policy/policy.py",
        "tests/policy/test_recomputation.py",
        ("not (self.training and torch.is_grad_enabled())", "not self.training"),
        ("max(1, int(mask[..., 1:].sum()))", "mask.numel()"),
        ("(int(prompts.mask.sum()) if prefix is None else 0)", "int(prompts.mask.sum())"),
        ("if not self.has_fixed_vision:\n                raise", "if not self.shares_prompt:\n                raise"),
    ),
    *_faults(
        "vr1/commands/plan/predict.py",
        "tests/policy/test_recomputation.py",
        ("choice.bytes_per_token * needs.prompts", "choice.bytes_per_token"),
        ("SHARE * (room - state)", "SHARE * room"),
    ),
    *_faults(
        "vr1/policy/logprobs.py",
        "tests/policy/test_logprobs.py",
        ("(gradients[0][:, None] * derivative)", "derivative"),
        ("trains and fixed_head and not entropy_gradient", "trains and fixed_head"),
        ("trains and fixed_head and", "fixed_head and"),
        ("return total - product.sum(-1)", "return total + product.sum(-1)"),
    ),
    # The training step.
    *_faults(
        "vr1/modules/base.py",
        _TRAINING,
        ("if not self._within_step:", "if True:"),
        ("if not self._within_step:", "if self._within_step:"),
        ("parameter.grad = None", "pass"),
        ("with clippable(optimizer, self.trainer.precision_plugin):", "if True:"),
        ('{"step": self.trainer.global_step + 1}', '{"step": self.trainer.global_step}'),
        ("return (values * mask).sum() / mask.sum().clamp(min=1)", "return values.mean()"),
    ),
    *_faults(
        "vr1/modules/base.py",
        _UPDATES,
        ("if parameter.requires_grad)\n", "if parameter.dim() > 1)\n"),
        ('"interval": "step"}}', '"interval": "epoch"}}'),
    ),
    *_faults(
        "vr1/modules/grpo.py",
        _UPDATES,
        (
            "update, position = divmod(batch_idx, self.trainer.accumulate_grad_batches)",
            "update, position = batch_idx, 0",
        ),
        ("if update % self.updates_per_rollout == 0:", "if False:"),
        ("if update % self.updates_per_rollout == 0:", "if update == 0:"),
        ("if rollout.old_log_probs is None:", "if True:"),
        ("rollout.old_log_probs = log_probs.detach()", "rollout.old_log_probs = log_probs"),
        (
            "prompts, tokens, mask, self.sampling.temperature, rollout",
            "prompts, tokens, mask, 1.0, rollout",
        ),
        (
            "return self.reference.log_probs(batch, tokens, mask, self.sampling.temperature)",
            "return self.reference.log_probs(batch, tokens, mask, 1.0)",
        ),
        (
            "return self.reference.log_probs(batch, tokens, mask, self.sampling.temperature)",
            "return self.policy.log_probs(batch, tokens, mask, self.sampling.temperature)[0].detach()",
        ),
        ("(self.seed * 1_000_003 + self.trainer.global_step)", "self.seed"),
        ("mask=mask,\n            advantages=", "mask=mask,\n            advantages=2 * "),
    ),
    *_faults(
        "vr1/modules/grpo.py",
        _TRAINED,
        ("for _ in range(shape[1])]", "for _ in range(shape[1])][::-1]"),
    ),
    *_faults(
        "vr1/modules/grpo.py",
        _restated("truncated_do_not_count"),
        ("mask = rollout.mask & rollout.finished[..., None] if self.loss.mask_truncated else", "mask ="),
        ("rollout.mask & rollout.finished[..., None] if", "rollout.mask & ~rollout.finished[..., None] if"),
    ),
    *_faults(
        "vr1/modules/grpo.py",
        _TRAINING,
        ("(self.seed * 1_000_003 + self.trainer.global_step) * (self", "(self.seed * 1_000_003) * (self"),
        ("* (self.resample_zero_variance + 1) + attempt", "+ attempt"),
        ("* (self.resample_zero_variance + 1) + attempt", "* (self.resample_zero_variance + 1)"),
        ("if not groups.any():", "if not groups.all():"),
        ("if not groups.any():", "if groups.any():"),
        (
            "rollout = replace_groups(rollout, resampled, groups)",
            "rollout = replace_groups(resampled, rollout, groups)",
        ),
        ("rollout = replace_groups(rollout, resampled, groups)", "rollout = resampled"),
        ("rollout = replace_groups(rollout, resampled, groups)", "pass"),
    ),
    *_faults(
        "vr1/rollout/batching.py",
        _TRAINING,
        (
            "tokens=torch.where(rows[:, None, None], padded(resampled.tokens), padded(rollout.tokens))",
            "tokens=padded(resampled.tokens)",
        ),
    ),
    *_faults(
        "vr1/modules/grpo.py",
        _restated("resampled"),
        ("for attempt in range(1, self.resample_zero_variance + 1):", "for attempt in range(1, 2):"),
    ),
    *_faults(
        "vr1/rollout/batching.py",
        _restated("resampled"),
        ("resampled.finished, rollout.finished)", "rollout.finished, resampled.finished)"),
    ),
    *_faults(
        "vr1/modules/grpo.py",
        _ACCUMULATION,
        ("samples_whole_steps = True", "samples_whole_steps = False"),
        ("batch.following[: left - 1]", "batch.following"),
        ("batch.following[: left - 1]", "batch.following[:left]"),
        ("self._sampled.popleft()", "self._sampled.pop()"),
        ("window = min(window, len(stored))", "pass"),
        ("if self.trainer.accumulate_grad_batches > 1:", "if False:"),
        ("select_prompts(batch, rows)", "select_prompts(batch, rows[::-1])"),
    ),
    *_faults(
        "vr1/modules/base.py",
        _ACCUMULATION,
        ("restore_gradients(self._trained(), self._gradients)", "pass"),
        ("self._gradients = gradients_of(checkpoint)", "self._gradients = {}"),
        ("self.step_figures.load_state_dict(self._figures)", "self.step_figures.load_state_dict({})"),
        ("batches_left(self.trainer, batch_idx) > 1", "batches_left(self.trainer, batch_idx) > 0"),
    ),
    *_faults(
        "vr1/data/sampler.py",
        _ACCUMULATION,
        ("self.batches.window - position", "self.batches.window"),
        ("if self._first_of_step is None or repeated else", "if self._first_of_step is None else"),
    ),
    *_faults(
        "vr1/rollout/batching.py",
        _ACCUMULATION,
        ("pad(part, (width - part.shape[1], 0))", "pad(part, (0, width - part.shape[1]))"),
        ("range(end - size, end)", "range(size)"),
    ),
    *_faults(
        "vr1/modules/grpo.py",
        _AGAIN,
        ("if not stored or self.trainer.state.fn != TrainerFn.FITTING:", "if not stored:"),
        ("if self.updates_per_rollout > 1:", "if self.updates_per_rollout > 2:"),
    ),
    *_faults(
        "vr1/modules/sft.py",
        _TRAINING,
        ("loss = -mean_where(log_probs, mask) *", "loss = -(log_probs * mask).sum() *"),
    ),
    # Losses and advantages.
    *_faults(
        "vr1/losses.py",
        _RAGGED,
        ("> clipped * advantages) * mask).sum() / count", "> clipped * advantages)).float().mean()"),
        ("((ratio * advantages > clipped * advantages)", "((ratio * advantages != clipped * advantages)"),
        ("((ratio * advantages > clipped * advantages)", "((ratio != clipped)"),
        ('"ratio": (ratio.detach() * mask).sum() / count', '"ratio": ratio.detach().mean()'),
        ('"ratio": (ratio.detach() * mask).sum() / count', '"ratio": (ratio.detach() * mask).mean()'),
        ('metrics["kl"] = (kl.detach() * mask).sum() / count', 'metrics["kl"] = kl.detach().mean()'),
        ('metrics["kl"] = (kl.detach() * mask).sum() / count', 'metrics["kl"] = (kl * mask).sum() / count'),
        ("self.total(per_token * mask, mask)", "self.total(per_token, mask)"),
        ("/ self.weight(mask).clamp(min=1), metrics", "/ self.weight(mask), metrics"),
        ("return torch.minimum(", "return torch.maximum("),
        ("ratio.clamp(1 - self.clip_low, 1 + self.clip_high)", "ratio.clamp(1 - self.clip_low, 1 + self.clip_low)"),
        ("ratio.clamp(1 - self.clip_low, 1 + self.clip_high)", "ratio.clamp(1 - self.clip_high, 1 + self.clip_high)"),
        ("per_token = per_token + self.kl_coef * kl", "per_token = per_token - self.kl_coef * kl"),
        ("per_token = per_token + self.kl_coef * kl", "per_token = per_token + self.kl_coef * kl.detach()"),
        ("difference = reference_log_probs - log_probs", "difference = log_probs - reference_log_probs"),
        ("return torch.expm1(difference) - difference", "return difference.square() / 2"),
        ("return (mask.sum(-1) > 0).sum()", "return (mask.sum(-1) >= 0).sum()"),
        ("(per_token.sum(-1) / mask.sum(-1).clamp(min=1)).sum()", "(per_token.sum(-1) / mask.sum(-1)).sum()"),
        ("(per_token.sum(-1) / mask.sum(-1).clamp(min=1)).sum()", "per_token.mean(-1).sum()"),
        ("/ mask.sum(-1, keepdim=True).clamp(min=1)", "/ mask.sum(-1, keepdim=True)"),
        ("(own - terms.old_log_probs) * mask", "own - terms.old_log_probs"),
        ("return mean + (terms.log_probs - own)", "return mean.expand_as(own)"),
        ("return per_token.sum() / self.max_tokens", "return per_token.sum() / mask.shape[-1]"),
    ),
    *_faults(
        "vr1/advantage.py",
        ("tests/test_advantage.py", _restated("plain")),
        ("rewards - rewards.mean(dim=1, keepdim=True)", "rewards - rewards.mean()"),
        ("rewards.std(dim=1, keepdim=True) if", "rewards.std(dim=1, keepdim=True, correction=0) if"),
        ("return centred / (deviation + self.epsilon)", "return centred / deviation.clamp(min=self.epsilon)"),
        ("centred.masked_fill(zero_variance_groups(rewards)[:, None], 0.0)", "centred"),
    ),
    # Sampling and log-probabilities.
    *_faults(
        "vr1/policy/logprobs.py",
        _UPDATES,
        ("logits = logits / temperature", "logits = logits * temperature"),
        ("if temperature != 1:", "if temperature > 1:"),
    ),
    *_faults(
        "vr1/rollout/sampling.py",
        _TOP_P,
        ("logits if sampling.temperature == 1 else logits / sampling.temperature", "logits"),
        ("if top_p == 1:", "if True:"),
        ("device=probabilities.device) > last[:, None]", "device=probabilities.device) >= last[:, None]"),
    ),
    *_faults(
        "vr1/rollout/generate.py",
        _UPDATES,
        ("np.random.default_rng([draw, record.image_id])", "np.random.default_rng([draw])"),
        ("np.random.default_rng([draw, record.image_id])", "np.random.default_rng([record.image_id])"),
        ("[None] < lengths[:, None]", "[None] <= lengths[:, None]"),
    ),
    *_faults(
        "vr1/rollout/generate.py",
        _TRAINING,
        ("policy.train(was_training or with_graph)", "policy.train(was_training)"),
    ),
    *_faults(
        "vr1/policy/policy.py",
        _UPDATES,
        ("prefix.next_position[prompt] + place)", "prefix.next_position[prompt] + place + 1)"),
        (
            "torch.where((place == 0)[:, None], prefix.state[prompt], states.index_select(0, before))",
            "states.index_select(0, before)",
        ),
        ("roll(1, dims=-1)[counted]", "view(read.shape)[counted]"),
        ("state=states[:, -1],", "state=states[:, 0],"),
    ),
    *_faults(
        "vr1/policy/policy.py",
        "tests/policy/test_patches.py",
        ("F.pad(mask[..., 1:], (0, 1))", "mask"),
    ),
    *_faults(
        "vr1/policy/reference.py",
        (_TRAINING, "tests/modules/test_grpo.py"),
        ("copy.deepcopy(policy, kept).eval().", "copy.deepcopy(policy, kept).train()."),
        ("copy.deepcopy(policy, kept).eval().requires_grad_(False)", "policy"),
        (" if not weight.requires_grad}", "}"),
    ),
    *_faults(
        "vr1/policy/reference.py",
        ("tests/policy/test_reference.py", "tests/modules/test_common_weights.py"),
        ("copy.deepcopy(policy, kept)", "copy.deepcopy(policy)"),
        ("        self._check_common()\n", ""),
    ),
    *_faults(
        "vr1/policy/policy.py",
        ("tests/policy/test_policy.py", "tests/modules/test_fixed_vision.py"),
        ("return drops_values(self, self.base.config.to_dict())", "return drops_values(self, {})"),
        ("not drops_values(parts, self.base.config.vision_config.to_dict())", "not drops_values(parts, {})"),
    ),
    *_faults(
        "vr1/data/sampler.py",
        "tests/data/test_source.py",
        ("        return self._loader._iterator\n", "        return None\n"),
    ),
    *_faults(
        "vr1/policy/attention.py",
        "tests/policy/test_attention.py",
        ("F.dropout(weights, dropout) @ value", "weights @ value"),
        ("                dropout_p=scores.dropout,\n", ""),
    ),
    *_faults(
        "vr1/policy/reference.py",
        _ADAPTERS,
        ("            with self._policy.without_adapters():\n", "            with torch.no_grad():\n"),
        (
            "return self._policy.log_probs(prompts, tokens, mask, temperature)[0]",
            "return self._policy.log_probs(prompts, tokens, mask)[0]",
        ),
    ),
    *_faults(
        "vr1/policy/reference.py",
        _UPDATES,
        (
            "return self._copy.log_probs(prompts, tokens, mask, temperature)[0]",
            "return self._copy.log_probs(prompts, tokens, mask)[0]",
        ),
    ),
    # Data order and checkpoints.
    *_faults(
        "vr1/data/sampler.py",
        _AGAIN,
        ("self._received = self.batches.start\n", "self._received = 0\n"),
        ('received = received // state["window"] * window', "pass"),
        ('self.batches.set_epoch(state["epoch"])', "self.batches.set_epoch(0)"),
    ),
    *_faults(
        "vr1/data/sampler.py",
        _UPDATES,
        ("np.random.default_rng([self.seed, self.epoch])", "np.random.default_rng([self.seed])"),
        ("self.batches.set_epoch(self.batches.epoch + 1)", "self.batches.set_epoch(self.batches.epoch)"),
        (
            "position // self.window // self.repeats, position % self.window",
            "position // self.repeats, position % self.window",
        ),
    ),
    *_faults(
        "vr1/checkpoints/state.py",
        _AGAIN,
        ('counts["ready"] // before * window', 'counts["ready"] * before // window'),
        ('ready - (counts["ready"] - counts[name])', "ready"),
        ('for part in ("total", "current"))', 'for part in ("current",))'),
        ('for part in ("total", "current"))', 'for part in ("total",))'),
        ("if before == window:", "if before >= window:"),
        ("parts[slot * world : (slot + 1) * world]", "parts[slot::window]"),
        (
            "flat = [piece for row in pieces for piece in row]",
            "flat = [piece for row in pieces[::-1] for piece in row]",
        ),
        ("length = int(reached[-1]) + 1 if len(reached) else 1", 'length = state["mask"].shape[-1]'),
        ("if len(pieces) == window and all(len(row) == world for row in pieces):", "if len(pieces) == window:"),
    ),
    # Matching and rewards.
    *_faults(
        "vr1/matching.py",
        "tests/test_matching.py",
        ("_TIE_BREAK = 1e-9", "_TIE_BREAK = 1e-3"),
        ("_TIE_BREAK = 1e-9", "_TIE_BREAK = 0.0"),
        ("overlap = overlap * agree[predicted, target]", "pass"),
        ("cost = cost - self.giou * giou", "cost = cost + self.giou * giou"),
        ("return cost.argmin(axis=0)", "return cost.argmax(axis=0)"),
        ('label.strip().removesuffix(".").rstrip().casefold()', "label.strip().casefold()"),
    ),
    *_faults("vr1/optimizers.py", "tests/test_optimizers.py", ('("embed_tokens", "lm_head")', '("embed_tokens",)')),
    *_faults(
        "vr1/optimizers.py",
        "tests/test_optimizers.py",
        ("parameter.dim() == 2 and", "parameter.dim() >= 2 and"),
        ("optimizer.param_groups, optimizer.state = [group], self.state", "optimizer.state = self.state"),
        ("scaled = not isinstance(precision, MixedPrecision) or precision.scaler is not None", "scaled = False"),
        ("optimizer._step_supports_amp_scaling = True", "pass"),
    ),
    *_faults(
        "vr1/rewards/counts.py",
        _EXACT,
        ("return sum(agree) / max(len(agree), 1)", "return sum(agree) / max(match.num_predicted, 1)"),
        ("hits / match.num_predicted) / 2", "hits / match.num_targets) / 2"),
        ("/ max(match.num_predicted, match.num_targets)", "/ match.num_predicted"),
    ),
    *_faults(
        "vr1/rewards/overlap.py",
        _EXACT,
        ("best = true - 1 - int(unmatched[row, ::-1].argmax())", "best = int(unmatched[row].argmax())"),
        ("return counted / max(match.num_predicted, match.num_targets)", "return counted / match.num_targets"),
        ("if criterion.hit(overlap))", "if overlap > 0)"),
        ("unmatched[:, best] = -1.0", "pass"),
        ('larger if self.normalise_by == "larger" else', 'larger if self.normalise_by != "larger" else'),
    ),
    *_faults(
        "vr1/rewards/paper.py",
        _EXACT,
        ("boxes = match.num_predicted if self", "boxes = match.num_targets if self"),
        ("return sum(map(criterion.f, match.overlap.tolist())) / boxes", "return float(match.overlap.sum()) / boxes"),
        ("differentiate(hits / match.num_targets,", "differentiate(hits / match.num_predicted,"),
    ),
    *_faults(
        "vr1/rewards/base.py",
        ("tests/rewards/test_base.py", "tests/rewards/test_paper.py", "tests/rewards/test_overlap.py", _TRAINED),
        ("if value < xi1:", "if value <= xi1:"),
        ("(value == xi2 and not strict) else value", "(value == xi2 and strict) else value"),
        (
            "differentiate(overlap, self.xi0, self.xi0, self.strict)",
            "differentiate(overlap, self.xi1, self.xi2, self.strict)",
        ),
    ),
    # Reading answers and their scores.
    *_faults(
        "vr1/families/json_boxes.py",
        _HARD,
        ("len(box) < 4 or not all(map(math.isfinite, box)):", "not all(map(math.isfinite, box)):"),
        ("len(box) < 4 or not all(map(math.isfinite, box)):", "len(box) < 4:"),
        ("if len(numbers) != 4 or", "if len(numbers) < 4 or"),
    ),
    *_faults(
        "vr1/families/json_boxes.py",
        _DAMAGED,
        ("    if not item.in_step:\n", "    if False:\n"),
        ("if y_first:", "if False:"),
        ("len(labels) not in (0, 1, boxes)", "False"),
    ),
    *_faults(
        "vr1/families/json_answer.py",
        "tests/families/test_spans.py",
        ("start = one.outer[0] if before is not None and before.item == one.item else", "start ="),
        ("reached = min(reached, after.item[0])", "pass"),
    ),
    *_faults(
        "vr1/families/answer_region.py",
        _DAMAGED,
        ("if text[start:].strip():", "if True:"),
        ("len(text) if unfinished < 0 else unfinished", "len(text)"),
        ("return region if region[0] < region[1] else None", "return region"),
    ),
    *_faults(
        "vr1/families/item_reader.py",
        "tests/families/test_spans.py",
        ("closes.match(region, ends[own][-1])", "None"),
        ("start, end = min(box.start, label.start), max(box.end, label.end)", "start, end = box.start, box.end"),
        ("start = left - len(before) if region.endswith(before, reached, left) else start", "pass"),
    ),
    *_faults(
        "vr1/families/item_reader.py",
        _DAMAGED,
        ("has_label = label[0] < label[1] and not holds_numbers", "has_label = label[0] < label[1]"),
        ("text = text if label.shared else region", "text = text if label.start == label.end else region"),
    ),
    *_faults(
        "vr1/families/lenient_json.py",
        _HARD,
        ("for frame in takewhile(lambda frame: not frame.is_object, scanner.stack):", "for frame in scanner.stack:"),
        ("for frame in takewhile(lambda frame: not frame.is_object, scanner.stack):", "for frame in []:"),
    ),
    *_faults(
        "vr1/families/lenient_json.py",
        _DAMAGED,
        ("            # The value of the name before was lost.\n            frame.in_step = False", "            pass"),
        ("        self.in_step = False\n", "        pass\n"),
        ("if self.stack[-1].is_object and self.stack[-1].key is None:", "if False:"),
    ),
    *_faults(
        "vr1/boxes.py",
        "tests/test_detections.py",
        ("boxes = np.trunc(boxes)", "boxes = np.round(boxes)"),
        ('if self.outside == "clip" else', 'if self.outside == "keep" else'),
        ("rows &= (boxes[:, :2] < boxes[:, 2:]).all(axis=1)", "rows &= (boxes[:, :2] <= boxes[:, 2:]).all(axis=1)"),
    ),
    *_faults(
        "vr1/modules/evaluation.py",
        "tests/modules/test_fallback_scores.py",
        ("spans or [None] * boxes, ends, log_probs[: len(ends)])", "spans or [None] * boxes, ends, log_probs)"),
    ),
    *_faults(
        "vr1/modules/evaluation.py",
        "tests/modules/test_base.py",
        ("rows = ~record.crowd", "rows = record.crowd | True"),
    ),
    # Callbacks.
    *_faults(
        "callbacks/guards.py",
        _SEVERAL,
        ("loss.detach().isfinite().all() & self._finite_loss", "loss.detach().isfinite().all()"),
        ("finite = loss_is_finite and finite_gradients(optimizer)", "finite = finite_gradients(optimizer)"),
        ("reduce_boolean_decision(finite, all=True)", "reduce_boolean_decision(finite, all=False)"),
        ("position = batch_idx % trainer.accumulate_grad_batches", "position = 0"),
        ("rollout_batches.get(position)", "rollout_batches.get(batch_idx)"),
        ("self.above = 0 if value <= self.ceiling else self.above + 1", "self.above += value > self.ceiling"),
    ),
    *_faults(
        "callbacks/guards.py",
        (
            "tests/callbacks/test_guards.py::test_a_skipped_step_changes_nothing",
            "tests/callbacks/test_guards.py::test_several_in_a_row_stop_the_run",
        ),
        ("finite = loss_is_finite and finite_gradients(optimizer)", "finite = loss_is_finite"),
        ("            self.consecutive = 0\n        pl_module", "            pass\n        pl_module"),
    ),
    *_faults(
        "callbacks/rule_refinement.py",
        _SEVERAL,
        ("return total / count if count else None", "return total / len(gathered.reshape(-1, 2)) if count else None"),
    ),
    *_faults(
        "callbacks/schedule.py",
        _SEVERAL,
        ("gain = -gain", "gain = abs(gain)"),
        (
            'if self.best is not None and self.plateau.mode == "min":',
            'if self.best is not None and self.plateau.mode == "none":',
        ),
        ("math.ceil(stage.at_fraction * total - 1e-9)", "math.ceil(stage.at_fraction * total)"),
        ("math.ceil(stage.at_fraction * total - 1e-9)", "int(stage.at_fraction * total)"),
        ("math.fsum(self.values) / len(self.values)", "self.values[-1]"),
        ("step - self.best_step >= self.plateau.patience", "step - self.best_step > self.plateau.patience"),
    ),
    # Attention, strategies, memory plan.
    *_faults(
        "vr1/policy/attention.py",
        "tests/policy/test_attention.py",
        ("(present.cumsum(0) - 1).clamp(min=0)", "present.cumsum(0).clamp(max=int(present.sum()) - 1)"),
        ("(visible & present[:, None])[:, None]", "(visible | ~visible & present[:, None])[:, None]"),
        ("prefix.mask.repeat_interleave(group, dim=0)", "prefix.mask.repeat(group, 1)"),
        ("(distance >= 0) & (distance < window)", "(distance >= 0) & (distance <= window)"),
        ("causal_mask(longest, width + longest, window,", "causal_mask(longest, width + longest, None,"),
        ("* scaling / cap) * cap", "* scaling / cap)"),
    ),
    *_faults(
        "vr1/rollout/cache.py",
        "tests/rollout/test_cache.py",
        ("max(scores.shape[2] - window, 0)", "max(scores.shape[2] - window - 1, 0)"),
        ("scores[..., : max(scores.shape[2] - window", "scores[..., : max(self._length - window"),
        ("torch.tanh(found / scores.cap) * scores.cap", "torch.tanh(found / scores.cap)"),
        ("hidden | (distance >= window)", "hidden | (distance > window)"),
        ("self.slot + self._prompt_width - torch.arange(", "self.slot + self._prompt_width + 1 - torch.arange("),
    ),
    *_faults(
        "vr1/griffon/model.py",
        "tests/griffon/test_model.py",
        ("features = features * torch.tensor(", "features = features + 0 * torch.tensor("),
        ("[: self.config.vision_layers]:", "[:]:"),
        ("patches = states[:, 1:]", "patches = states[:, :-1]"),
        ("logits if cap is None else torch.tanh(logits / cap) * cap", "logits"),
        ("        model.model.freeze_unused()\n", ""),
    ),
    *_faults(
        "vr1/strategies/fully_sharded.py",
        "tests/strategies/test_sharding_settings.py",
        (
            "            policy.set_max_length_ratio(math.inf)\n",
            "            self._module.policy.set_max_length_ratio(math.inf)\n",
        ),
        ("policy.set_max_length_ratio(math.inf)", "pass"),
        ("reduce_dtype=torch.float32 if mixed else None", "reduce_dtype=None"),
        ("cast_forward_inputs=False", "cast_forward_inputs=True"),
        ("policies = self._module.policies()\n", "policies = [self._module.policy]\n"),
        ("policy.no_op(None)", "policy.no_op()"),
    ),
    *_faults(
        "vr1/strategies/fully_sharded.py",
        "tests/modules/test_common_weights.py",
        ("if policy is not first and parameter is parameters[0].get(name)", "if policy is not first"),
        ("if policy is not first and parameter is parameters[0].get(name)", "if False"),
    ),
    *_faults(
        "vr1/advantage.py",
        ("tests/test_advantage.py", "tests/modules/test_training.py"),
        ("total=torch.where(rows, other.total, self.total)", "total=other.total"),
        ("total=torch.where(rows, other.total, self.total)", "total=torch.where(rows, self.total, other.total)"),
        ("torch.where(rows, other.terms[name], values) for", "other.terms[name] for"),
        ("torch.where(rows, other.terms[name], values) for", "torch.where(rows, values, other.terms[name]) for"),
        ("(new if is_new else old)", "(old if is_new else new)"),
    ),
    *_faults(
        "vr1/advantage.py",
        ("tests/test_advantage.py", "tests/modules/test_box_advantage.py"),
        ("groups.weights[name] * self.of(scores)", "self.of(scores)"),
        ("value[match.predicted] - baseline[match.target]", "value[match.predicted] - mean"),
        ("values.mean(axis=0)", "values.max(axis=0)"),
        ("np.full(len(value), -mean)", "np.zeros(len(value))"),
        ("missed[match.target] = False", "missed[match.predicted % max(match.num_targets, 1)] = False"),
        ("(missed_values.mean() - missed_values)", "(missed_values - missed_values.mean())"),
        ("(missed_values.mean() - missed_values)", "-missed_values"),
        ("np.square(np.concatenate(advantages)).mean()", "np.square(np.concatenate(advantages)).sum()"),
        ("_compare([match.box_overlap for", "_compare([match.overlap for"),
        ("bisect_right(ends, item_span[1])", "bisect_right(ends, item_span[0])"),
        ("                first = after\n", ""),
        ("added[len(ends) :] = 0.0", "pass"),
        ("answers=self.answer_weight * self", "answers=self"),
        ("items += [self.box_weight * values for", "items += [values for"),
    ),
    *_faults(
        "vr1/losses.py",
        ("tests/test_losses.py", "tests/modules/test_box_advantage.py"),
        ("if terms.advantages.dim() == 3 else", "if terms.advantages.dim() == 2 else"),
        ("per_token = per_token * weights", "per_token = per_token / weights.clamp(min=1e-6)"),
        ("terms.old_log_probs - terms.sampler_log_probs)", "terms.sampler_log_probs - terms.old_log_probs)"),
        ("gap = gap.sum(-1, keepdim=True)", "gap = gap.mean(-1, keepdim=True)"),
        ("gap.exp().clamp(max=self.correction_bound)", "gap.exp()"),
        ("ratio.detach().clamp(max=1 + self.clip_high)", "ratio.detach()"),
        ("ratio.detach().clamp(max=1 + self.clip_high)", "ratio.clamp(max=1 + self.clip_high)"),
    ),
    *_faults(
        "vr1/rollout/sampling.py",
        "tests/rollout/test_generate.py",
        ("return token, largest - logits.logsumexp(-1)", "return token, largest"),
        ("probabilities.gather(-1, token[:, None])[:, 0].log()", "probabilities.amax(-1).log()"),
    ),
    *_faults(
        "vr1/rollout/rows.py",
        ("tests/rollout/test_generate.py", "tests/rollout/test_shared.py"),
        ("log_probs.masked_fill(~self.running, 0.0)", "log_probs"),
    ),
    *_faults(
        "vr1/modules/evaluation.py",
        "tests/modules/test_base.py",
        ("self.ranked.update(detections, records)", "self.ranked.update(detections[:1], records[:1])"),
        ("scores=np.full(len(found), SCORE)", "scores=found.scores"),
    ),
    *_faults(
        "vr1/metrics/evaluation.py",
        "tests/metrics/test_evaluation.py",
        ("evaluate_classes(_equal_scores(given))", "evaluate_classes(given)"),
        ("ranked = evaluate(given)", "ranked = evaluate(_equal_scores(given))"),
    ),
    *_faults(
        "vr1/modules/warm_start.py",
        "tests/modules/test_warm_start.py",
        ("return step < self.end", "return step <= self.end"),
        ("optimizer.state.clear()", "pass"),
        ("self.settings.lr if step < self.end else rate", "self.settings.lr"),
        ("if step <= self.end:", "if step < self.end:"),
        ("elif self._best > 0:", "else:"),
        ("if value > self._best:", "if value >= self._best:"),
        ('self._best, self._waited = float(state["best"]), int(state["waited"])', "pass"),
    ),
    *_faults(
        "vr1/modules/warm_start.py",
        "tests/modules/test_warm_start.py",
        ("self.trainer.global_step > self.warm_start.end", "self.trainer.global_step >= self.warm_start.end"),
        ("self.trainer.global_step > self.warm_start.end", "True"),
    ),
    *_faults(
        "vr1/modules/grpo.py",
        "tests/modules/test_warm_start.py",
        ("batch, self.warm_start.settings.target_order)", 'batch, "annotated")'),
    ),
    *_faults(
        "callbacks/rule_refinement.py",
        "tests/modules/test_warm_start.py",
        ("if isinstance(pl_module, HasTrainingState) and pl_module.training_state.warm_start:", "if False:"),
    ),
    *_faults(
        "vr1/commands/plan/predict.py",
        "tests/commands/test_plan.py",
        ("width = 4 if needs.policy.lora is not None else stored", "width = stored"),
        ("cache_capacity(needs.completion_tokens) * (1 + 1 / layers)", "needs.completion_tokens * (1 + 1 / layers)"),
        ('sizes["gradients"] = trained * width', 'sizes["gradients"] = sizes["weights"]'),
    ),
    # The average of the weights.
    *_faults(
        "callbacks/weight_average.py",
        "tests/callbacks/test_weight_average.py",
        ("1 - self.decay)", "self.decay)"),
        ("self._exchanged = any(True for _ in _averaged(trainer))", "pass"),
        ("if self._exchanged or not states:", "if not states:"),
        ("weights.update(dict.fromkeys(own, average))", "weights[own[0]] = average"),
        ("by_number[number] = {**by_number[number], _KEY: latest}", "pass"),
        ("            state[_KEY].copy_(parameter)\n", ""),
        ("                if not state:\n                    continue\n", ""),
        ("self._exchange(trainer, average=False)\n        for optimizer", "for optimizer"),
    ),
    # The supervised term.
    *_faults(
        "vr1/modules/grpo.py",
        (_restated("supervised"), "tests/modules/test_supervised_term.py"),
        ("mask = mask[:, group:]", "pass"),
        ("loss = -mean_where(log_probs[:, group:], mask)", "loss = -mean_where(log_probs[:, -2:-1], mask)"),
        ("term = self.supervised.weight * loss", "term = loss"),
        ("return loss + supervised_term", "return loss"),
        ("self.policy.eos_tokens[0], self.supervised.target_order", 'self.policy.eos_tokens[0], "annotated"'),
    ),
    *_faults(
        "vr1/modules/grpo.py",
        "tests/strategies/test_fully_sharded.py",
        ("* self.share_of(mask.sum())", "* 1.0"),
    ),
    *_faults(
        "vr1/modules/supervised_term.py",
        "tests/modules/test_supervised_term.py",
        ("pad(part, (0, width - part.shape[-1]))", "pad(part, (width - part.shape[-1], 0))"),
        ("(mask, answers_mask))", "(mask, torch.ones_like(answers_mask)))"),
        ("cut = answers_mask[..., limit:]", "cut = answers_mask[..., limit - 1 :]"),
        ("answers[..., :limit], answers_mask[..., :limit]", "answers, answers_mask"),
        ("if not self.weight > 0:", "if self.weight < 0:"),
    ),
    *_faults(
        "vr1/commands/plan/needs.py",
        "tests/commands/test_plan_rollouts.py",
        ("return self.group_size + self.supervised", "return self.group_size"),
        ('module.get("supervised") is not None', "False"),
    ),
    *_faults(
        "vr1/policy/reference.py",
        "tests/strategies/test_sharding_settings.py",
        ("            if isinstance(policy, FSDPModule):\n", "            if False:\n"),
    ),
    # Decoding kernels, and whether they are used.
    *_faults(
        "vr1/rollout/kernels/attention.py",
        _ATTENTION,
        (
            "scores = tl.dot(queries, key, input_precision=EXACT) * scaling\n        scores = tl.where((inside",
            "scores = tl.dot(queries, key, input_precision=EXACT)\n        scores = tl.where((inside",
        ),
        ("(token >= first_seen)", "(token > first_seen)"),
        ("begin = split * split_length", "begin = split * (split_length - 1)"),
        (
            "result = result * fade[:, None] + tl.dot(share.to(value.dtype), value, input_precision=EXACT)\n"
            "        weight = weight * fade + tl.sum(share, 1)\n        highest = higher\n    index = (pair",
            "result = result + tl.dot(share.to(value.dtype), value, input_precision=EXACT)\n"
            "        weight = weight * fade + tl.sum(share, 1)\n        highest = higher\n    index = (pair",
        ),
        ('level = tl.where(higher == float("-inf"), 0.0, higher)', "level = higher"),
        ("tokens = tl.load(slot) + 1", "tokens = tl.load(slot)"),
        ("own + values_at + address[:, None]", "own + address[:, None]"),
        ("if head >= H + K:", "if head > H + K:"),
        ("(place + E // 2) % E", "(place + 1) % E"),
        ("+ swapped * tl.load(sine", "- swapped * tl.load(sine"),
        ("row * row_stride + head * E", "(row * (H + 2 * K) + head) * E"),
        ("slot, head = number // G, kv_head * G + number % G", "slot, head = number // G, kv_head + number % G * K"),
        ("block * QUERIES + tl.arange", "tl.arange"),
        ("weight, result = weight * fade, result * fade[:, None]", "result = result * fade[:, None]"),
        ("weight += fade * tl.load(total + other", "weight += tl.load(total + other"),
        ("triton.cdiv(slots * group, _QUERIES)", "triton.cdiv(slots, _QUERIES)"),
    ),
    *_faults(
        "vr1/rollout/kernels/layers.py",
        (f"{_KERNELS}::test_norm", f"{_KERNELS}::test_gate"),
        ("tl.sum(values * values, 0) / D", "tl.sum(values * values, 0) / BLOCK"),
        ("up + row * up_stride", "up + row * gate_stride"),
        ("first / (1 + tl.exp(-first))", "first / (1 + tl.exp(first))"),
    ),
    *_faults(
        "vr1/rollout/kernels/cache.py",
        _CACHE,
        (
            "        self._first_token = self._first_token[remaining]\n        self._lay_out()\n",
            "        self._first_token = self._first_token[remaining]\n",
        ),
        ("self._first_token = self._first_token[remaining]", "pass"),
        ("(self._slot_of_row[rows] // self._slots).unique_consecutive()", "rows.unique() // self._slots"),
        ("self._row[self._slot_of_row] =", "self._row[: len(self._slot)] ="),
        ("if layer == 0:", "if layer == 1:"),
        (
            "self._prompts, self.kv_heads, self._slots, self._capacity,",
            "self._prompts, self.kv_heads, self._slots, 128,",
        ),
    ),
    *_faults(
        "vr1/rollout/kernels/check.py",
        _CHOICE,
        ("if not difference <= _BOUNDS[dtype]:", "if difference > _BOUNDS[dtype]:"),
        ("        self.failure = reason\n", "        pass\n"),
        ("if self.failure is not None or ", "if "),
        ("        self._tried.add(kind)\n", ""),
        ("kind = (heads, kv_heads, width, dtype, device)", "kind = (kv_heads, width, dtype, device)"),
        ("autocast_dtype(device.type) or prefix.keys[0].dtype", "prefix.keys[0].dtype"),
    ),
    *_faults(
        "vr1/rollout/kernels/check.py",
        f"{_KERNELS}::test_comparing_finds_a_fault_of_each_kernel",
        ("return max(*differences, *_compare_layers(random))", "return max(differences)"),
        ("return max(*differences, *_compare_layers(random))", "return max(_compare_layers(random))"),
        ("differences.append(_difference(*results))", "differences[:] = [_difference(*results)]"),
    ),
    *_faults(
        "vr1/rollout/kernels/check.py",
        f"{_CPU_ROLLOUTS}::test_comparing_finds_faults",
        (
            'weights["head"]), found))\n    return max(differences)',
            'weights["head"]), found))\n    return differences[0]',
        ),
    ),
    *_faults(
        "vr1/rollout/shared.py",
        (_CHOICE, *_CACHE),
        ("kernels is not None and by_layers and", "kernels is not None and"),
        ("dequantize, with_kernels, graphs)", "dequantize, False, graphs)"),
        ("dequantize, with_kernels, None)", "dequantize, False, None)"),
        ("            kernels.give_up(error)", "            raise error"),
    ),
    *_faults(
        "vr1/detector.py",
        _CHOICE,
        ("                self._sampler,\n", ""),
    ),
    *_faults(
        "vr1/rollout/sampler.py",
        _CHOICE,
        ('None if self.kernels == "off" else self._kernels', "self._kernels"),
        ('None if self.kernels == "off" else self._kernels', "Kernels()"),
    ),
    *_faults(
        "vr1/rollout/decoder.py",
        _CACHE,
        ("kernels.rms_norm(states, weight, norm.variance_epsilon)", "kernels.rms_norm(states, weight, 1e-2)"),
    ),
    *_faults(
        "vr1/policy/norms.py",
        "tests/policy/test_norms.py",
        ("div_(states.shape[-1])", "div_(len(states))"),
        (".add_(epsilon)", ".add_(0.0)"),
        ("addcmul_(normed, along)", "addcmul_(normed, -along)"),
        ("div_(-states.shape[-1])", "neg_()"),
        (".mul_(scale).to(states.dtype), of_weight", ".to(states.dtype), of_weight"),
        ("(gradient * normed).reshape", "(gradient * states).reshape"),
        ("weighted = gradient * weight", "weighted = gradient.clone()"),
        (
            "ctx.save_for_backward(states, weight, scale)\n        return (wide",
            "ctx.save_for_backward(wide * 1, weight, scale)\n        return (wide",
        ),
        ("wide = states.float()", "wide = states"),
    ),
    *_faults(
        "vr1/policy/adapters.py",
        "tests/policy/test_adapters.py",
        ("layer.lora_B[name].weight * layer.scaling[name]", "layer.lora_B[name].weight"),
        ("linear(layer.lora_dropout[name](x)", "linear((x)"),
        ("layer.disable_adapters or layer.merged or ", "layer.merged or "),
        ("layer.disable_adapters or layer.merged or ", "layer.disable_adapters or "),
        (" or names[0] in layer.lora_variant:", ":"),
        ("len(names) != 1", "not names"),
        ("layer.lora_B[name].bias is None and converted", "converted"),
        ("converted = same or x.is_meta or autocast_dtype(x.device.type)", "converted = True"),
        ("kinds.append(lora.Linear4bit)", "pass"),
    ),
    *_faults(
        "vr1/policy/patches.py",
        ("tests/policy/test_norms.py", "tests/policy/test_adapters.py"),
        ("        fuse_norm(part)", "        pass"),
        ("    fuse_adapters(network)", "    pass"),
    ),
    # Kernels of a CPU.
    *_faults(
        "vr1/cpu_kernels/decoding.c",
        (_C_DECODING, _CPU_ROLLOUTS),
        ("tokens = r->slot + 1", "tokens = r->slot"),
        (
            "largest(mine + P_padded, 0, tokens, largest(mine, first, r->P, -INFINITY))",
            "largest(mine, first, r->P, -INFINITY)",
        ),
        ("values + first * E, r->P - first", "values, r->P - first"),
        ("kv_head = pair % K", "kv_head = pair / r->B"),
        ("(float)layer->scaling, normed);", "1, normed);"),
        ("r->slot / BLOCK * BLOCK * E + r->slot % BLOCK;", "r->slot / BLOCK * BLOCK * E;"),
        ("    if (norm->weight) {\n        normalize(", "    if (norm->weight && E < 0) {\n        normalize("),
        ("squares[d % 4] += value * value;", "squares[d % 4] = value * value;"),
        ("multiply(&layer->up, block, normed + row,", "multiply(&layer->up, block, normed,"),
        ("const int64_t of_thread = stride * D_padded", "const int64_t of_thread = 0 * D_padded"),
        ("found < 0 ? 0 : found", "found"),
        ("double left = uniform * total;", "double left = uniform;"),
        ("is_running ? log_prob : 0", "log_prob"),
        ("is_running ? token : s->ends[0]", "token"),
        ("s->lengths[row] += is_running;", "s->lengths[row]++;"),
        ("i < s->end_count", "i < 1"),
        ("i < s->forbidden_count", "i < 0"),
        ("s->uniform[row * C + count]", "s->uniform[row * C]"),
        ("sum[block] <= left", "sum[block] < left"),
        ("(float)(1 / temperature)", "1"),
    ),
    *_faults(
        "vr1/cpu_kernels/products.h",
        _C_DECODING,
        ("const int64_t end = least(start + SUMMED, inputs);", "const int64_t end = start + SUMMED;"),
        ("SUMMED = 128,", "SUMMED = 1 << 30,"),
        ("store(to, load(to) + sums", "store(to, sums"),
        ("        if (vectors == 1)", "        if (vectors >= 1)"),
        ("count = least(OUTPUTS, product->outputs - first);", "count = least(OUTPUTS - 1, product->outputs - first);"),
        ("o * TILE_ROWS + r - row]", "o * TILE_ROWS + r]"),
    ),
    *_faults(
        "vr1/cpu_kernels/attention.h",
        _C_DECODING,
        ("for (int64_t q = 0; q < (queries);)", "for (int64_t q = 0; q + 1 < (queries);)"),
        ("key = first / BLOCK * BLOCK; key < last", "key = first; key < last"),
        ("x[e + E / 2] * sine[e]", "x[e + E / 2] * -sine[e]"),
        ("for (; i < last; i++) found =", "for (; i + 1 < last; i++) found ="),
    ),
    *_faults(
        "vr1/cpu_kernels/completion_attention.c",
        "tests/cpu_kernels/test_completion_attention.py",
        ("b.last = (b.first + b.count - 1) / G + 1;", "b.last = (b.first + b.count - 1) / G;"),
        ("b.skipped = s->first_token[b.prompt];", "b.skipped = 0;"),
        ("prompt->token, 1, lanes, s->E, products, 0)", "prompt->token, 1, lanes, s->E - 1, products, 0)"),
        ("b->last, sums, 1);", "b->last, sums, 0);"),
        ("key = b->first / G + 1; key < b->last", "key = b->first / G + 2; key < b->last"),
        ("(b->first + i) / G < key; i++", "(b->first + i) / G <= key; i++"),
        ("hide(s, &b, weights);", ""),
        ("factors[v] = 1.0f / sum;", "factors[v] = sum;"),
        ("highest[lane] + logf(sum[lane])", "highest[lane]"),
        ("(load(product) - mean)", "load(product)"),
        ("store(sums + i, load(sums + i) * (float)s->scaling);", ""),
        ("if (!number)\n", "if (1)\n"),
        ("memset(of_prompt_keys, 0, (size_t)(2 * size)", "memset(of_prompt_keys, 0, (size_t)(0 * size)"),
        ("b.count, s->E, of_prompt_values + skipped", "QUERIES, s->E, of_prompt_values + skipped"),
        ("if (s->prompt[sequence] != prompt) continue;", ""),
    ),
    *_faults(
        "vr1/cpu_kernels/completion_attention.py",
        "tests/cpu_kernels/test_completion_attention.py",
        ("inputs.query.shape[-1] % _VECTOR == 0", "True"),
        ("type(part) is Tensor and part.is_cpu", "part.is_cpu"),
        ("tensor if tensor.stride(-1) == 1 else tensor.contiguous()", "tensor"),
        ("    assert completions.first_of_row[-1] == tokens\n", ""),
        ("like.new_empty(like.transpose(1, 2).shape).transpose(1, 2)", "like.new_empty(like.shape)"),
        ("(~prompt_mask).sum(1)", "prompt_mask.sum(1)"),
    ),
    *_faults(
        "vr1/policy/attention.py",
        "tests/policy/test_attention.py",
        ("scores.cap is None and not scores.dropout and", "not scores.dropout and"),
        ("scores.cap is None and not scores.dropout and", "scores.cap is None and"),
        ("and self._window(scores) is None", ""),
        ("scores.window >= seen", "scores.window > seen"),
        ("scores.window >= seen", "scores.window >= seen - 1"),
        ("if is_plain and completion_attention.can_attend(inputs):", "if False:"),
    ),
    *_faults(
        "vr1/cpu_kernels/training.c",
        (
            "tests/policy/test_gates.py",
            "tests/policy/test_norms.py",
            "tests/policy/test_rotary.py",
            "tests/policy/test_logprobs.py",
        ),
        ("(1.0f + g * (1.0f - sigmoid))", "(1.0f + g * sigmoid)"),
        ("d * (g * sigmoid)", "d * sigmoid"),
        ("(weighted - n * mean) * scale", "weighted * scale"),
        ("load_some(sums + i, lanes) + along", "along"),
        ("const float sign = backwards ? -1 : 1;", "const float sign = 1;"),
    ),
    *_faults(
        "vr1/cpu_kernels/vectors.h",
        (_C_DECODING, "tests/policy/test_gates.py", "tests/policy/test_logprobs.py"),
        (
            "return chosen(none, (vec){0}, series * power_of_two(half)",
            "return chosen(none, (vec){0} + 1.0f, series * power_of_two(half)",
        ),
        ("smaller((vec){0} + 89.0f, larger((vec){0} - 87.0f, x))", "larger((vec){0} - 87.0f, x)"),
    ),
    *_faults(
        "vr1/cpu_kernels/vectors.h",
        "tests/cpu_kernels/test_completion_attention.py",
        (
            "return chosen(none, (vec){0}, series * power_of_two(__builtin",
            "return chosen(none, (vec){0} + 1.0f, series * power_of_two(__builtin",
        ),
    ),
    *_faults(
        "vr1/cpu_kernels/library.py",
        "tests/cpu_kernels/test_library.py",
        ('if sys.platform == "win32":', "if False:"),
        ("return chosen if shutil.which(chosen[0]) else None", "return chosen"),
        ("    if done.returncode == 0:", "    if True:"),
        ('if "error" in line)', "if True)"),
    ),
    *_faults(
        "vr1/rollout/kernels/cpu.py",
        _CPU_ROLLOUTS,
        ("self._first_token = self._first_token[before[0].unique_consecutive()]", "pass"),
        ("moved[after[0], :, after[1]] = stay", "moved[before[0], :, after[1]] = stay"),
        ("pad(self._own_values[layer], (0, 0, 0, more))", "pad(self._own_values[layer], (0, 0, more, 0))"),
        ("self._sampling.temperature == 0 or self._sampling.top_p < 1:", "self._sampling.temperature == 0:"),
        ("if not isinstance(mlp.act_fn, nn.SiLU | SiLUActivation):", "if False:"),
        ('if hasattr(attention, "q_norm"):', "if False:"),
        ("sum(4 * part.in_features", "sum(part.in_features"),
        ("if type(norm).__name__ not in RMS_NORMS or", "if"),
    ),
    *_faults(
        "vr1/rollout/linear.py",
        "tests/rollout/test_linear.py",
        ("down.detach().float(), alpha=scale)", "down.detach().float())"),
        ("(_is_four_bit(part.base) and not dequantize) or compute", "compute"),
        ("or compute_dtype(part.base) != torch.float32:", ":"),
    ),
    *_faults(
        "vr1/rollout/rotation.py",
        "tests/rollout/test_decoder.py",
        (' not in {"dynamic", "longrope"}:', " is not None:"),
        (
            "cosine, signed_sine = (part.index_select(0, positions) for",
            "cosine, signed_sine = (part.index_select(0, positions * 0) for",
        ),
    ),
    *_faults(
        "vr1/policy/logprobs.py",
        "tests/policy/test_logprobs.py",
        ("of_logits.gather(1, place) + gradient", "of_logits.gather(1, place) - gradient"),
        ("(chunk if compute is recomputed else compute)(*last)", "compute(*last)"),
        ("exp_().mul_(-gradient)", "exp_().mul_(gradient)"),
    ),
    *_faults(
        "vr1/policy/gates.py",
        "tests/policy/test_gates.py",
        ("if isinstance(mlp.act_fn, (nn.SiLU, SiLUActivation)):", "if True:"),
        ("gradient * up\n", "gradient * gate\n"),
        (
            "if torch.is_grad_enabled() and (gate.requires_grad or up.requires_grad):",
            "if torch.is_grad_enabled() and gate.requires_grad:",
        ),
        ("gate.dtype != up.dtype or ", ""),
    ),
]
