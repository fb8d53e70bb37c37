"""Credit for each box in a real training, against a restatement from the texts of the answers."""

import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from scipy.optimize import linear_sum_assignment

from tests.save_at import SaveAt
from tests.test_reference_training import overlap
from tests.trainers import trainer
from vr1.advantage import BoxAdvantage
from vr1.boxes import BoxRules
from vr1.data import SceneDataModule, SceneStyle
from vr1.families import Qwen25VL
from vr1.losses import GRPO, GSPO
from vr1.modules.grpo import GRPOModule
from vr1.policy import PolicySource
from vr1.rewards import Criterion, Reward
from vr1.rollout import Sampling

ITEM = re.compile(r'\{"bbox_2d": \[(\d+), (\d+), (\d+), (\d+)\], "label": "([^"\\]*)"\}')


def build(kind=GRPOModule, **settings):
    """The trained model that comes with vr1, which writes boxes."""
    return kind(
        policy=PolicySource(),
        advantage=BoxAdvantage(box_weight=1.5, answer_weight=0.5, end_weight=0.75),
        optimizer=partial(torch.optim.AdamW, lr=1e-4, weight_decay=0.0),
        seed=3,
        **(
            {
                "reward": Reward(criterion=Criterion(0.5, 0.0, 1.0)),
                "loss": GRPO(kl_coef=0.0),
                "sampling": Sampling(group_size=4, max_new_tokens=80),
            }
            | settings
        ),
    )


def fit(module, folder, steps, callbacks=(), ckpt_path=None, **settings):
    # Shapes whose names the model knows.
    style = SceneStyle(shapes=("circle", "square", "triangle", "star"), num_objects=(2, 4))
    data = SceneDataModule(style, train_scenes=6, val_scenes=2, batch_size=2, num_workers=0, shuffle=False)
    running = trainer(folder, callbacks, max_steps=steps, max_epochs=-1, **settings)
    running.fit(module, data, ckpt_path=ckpt_path, weights_only=False if ckpt_path else None)
    return running


class Seen(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        [self.rollout] = module.training_state.rollout_batches.values()
        self.scored, self.batch, self.logged = (
            module.training_state.scored_groups,
            batch,
            dict(trainer.callback_metrics),
        )


def values_of(text, record, input_size):
    """For each item of a text its end, the end of its box, the true box that it is assigned to, and two overlaps.

    The true box is None where there is none; the overlaps are that after the label rule, and that of the boxes alone.
    """
    (width, height), (wide, high) = record.image_size, input_size
    items = []
    for match in ITEM.finditer(text):
        x1, y1, x2, y2 = map(int, match.groups()[:4])
        (x1, x2), (y1, y2) = sorted([min(x1, wide), min(x2, wide)]), sorted([min(y1, high), min(y2, high)])
        box = [x1 * width / wide, y1 * height / high, x2 * width / wide, y2 * height / high]
        items.append((match.end(), match.end(4), box, match[5]))
    if not items:
        return []
    ious = np.array([[overlap(box, true) for true in record.boxes_xyxy.tolist()] for _, _, box, _ in items])
    agree = np.array([[label == name for name in record.labels] for *_, label in items])
    pairs = dict(zip(*linear_sum_assignment(ious + 1e-9 * agree, maximize=True), strict=True))
    return [
        (end, last, pairs.get(row), float((ious * agree)[row, pairs[row]]), float(ious[row, pairs[row]]))
        if row in pairs
        else (end, last, None, 0.0, 0.0)
        for row, (end, last, _, _) in enumerate(items)
    ]


def compared(answers, objects):
    """Advantages of items with (true box, value), in plain Python, and of the ends of the lists."""
    count, everything = len(answers), [value for answer in answers for _, value in answer]
    baseline = [sum(v for answer in answers for target, v in answer if target == number) / count for number in objects]
    mean = sum(everything) / len(everything)
    own = [[-mean if target is None else value - baseline[target] for target, value in answer] for answer in answers]
    # Where no box differs, all of this is 0 and is divided by 1.
    scale = (sum(value**2 for row in own for value in row) / len(everything)) ** 0.5 or 1.0
    missed = [sum(baseline[number] for number in objects if number not in {t for t, _ in a}) for a in answers]
    return [[value / scale for value in row] for row in own], [(sum(missed) / count - m) / scale for m in missed]


def expected_advantages(texts, rewards, record, input_size, decoded):
    """Advantages by token of one group, in plain Python."""
    answers = [values_of(text, record, input_size) for text in texts]
    centred = [reward - sum(rewards) / len(answers) for reward in rewards]
    deviation = (sum(value**2 for value in centred) / (len(answers) - 1)) ** 0.5
    objects = range(len(record.labels))
    items, ends = compared([[(target, value) for _, _, target, value, _ in a] for a in answers], objects)
    boxes, _ = compared([[(target, value) for _, _, target, _, value in a] for a in answers], objects)
    rows = []
    for row, answer in enumerate(answers):
        values = []
        for text, before in zip(decoded[row], ["", *decoded[row]], strict=False):
            value = 0.5 * centred[row] / (deviation + 1e-4)
            item = next((number for number, (stop, *_) in enumerate(answer) if len(text) <= stop), None)
            if item is None:
                value += 0.75 * ends[row]
            else:
                # A box begins behind the bracket and ends before the other.
                first = texts[row].rindex("[", 0, answer[item][1]) + 1
                in_box = len(text) > first and len(before) < answer[item][1]
                value += 1.5 * (boxes if in_box else items)[row][item]
            values.append(value)
        rows.append(values)
    return rows


def test_each_token_has_the_advantage_of_its_box(tmp_path):
    seen, module = Seen(), build()
    fit(module, tmp_path, 1, [seen])
    tokenizer, differing = module.processor.tokenizer, 0
    for prompt, record in enumerate(seen.scored.records):
        texts, mask = seen.scored.texts[prompt], seen.rollout.mask[prompt]
        tokens = [row[present].tolist() for row, present in zip(seen.rollout.tokens[prompt], mask, strict=True)]
        decoded = [
            [tokenizer.decode(row[: count + 1], skip_special_tokens=True) for count in range(len(row))]
            for row in tokens
        ]
        expected = expected_advantages(
            texts, seen.scored.rewards[prompt].tolist(), record, seen.scored.input_sizes[prompt], decoded
        )
        for row, values in enumerate(expected):
            found = seen.rollout.advantages[prompt, row][mask[row]]
            torch.testing.assert_close(found, torch.tensor(values), rtol=1e-4, atol=1e-4)
            differing += len(set(values)) > 1
    assert differing > 4, "the test needs answers whose boxes differ"
    assert 0.5 < float(seen.logged["grpo/boxes_with_advantage"]) <= 1


def test_boxes_of_a_rollout_have_the_probability_of_their_tokens(tmp_path):
    seen, module = Seen(), build()
    fit(module, tmp_path, 1, [seen])
    tokenizer, scores = module.processor.tokenizer, []
    group = seen.rollout.tokens.shape[1]
    for row, found in enumerate(seen.scored.detections):
        place = divmod(row, group)
        log_probs = seen.rollout.sampler_log_probs[place][seen.rollout.mask[place]].double().tolist()
        tokens = seen.rollout.tokens[place][seen.rollout.mask[place]].tolist()
        decoded = [tokenizer.decode(tokens[:count], skip_special_tokens=True) for count in range(len(tokens) + 1)]
        boxes = list(ITEM.finditer(found.completion))
        assert len(boxes) == len(found)
        for match, score in zip(boxes, found.scores.tolist(), strict=True):
            first, last = match.start(1), match.end(4)
            own = [
                log_prob
                for before, after, log_prob in zip(decoded, decoded[1:], log_probs, strict=False)
                if len(after) > first and len(before) < last
            ]
            assert score == pytest.approx(float(np.exp(np.mean(own))), rel=1e-6)
            scores.append(score)
    assert 0 < min(scores) < max(scores) < 1
    assert len(set(scores)) > 8


def test_sampler_and_training_pass_agree(tmp_path):
    seen = Seen()
    fit(build(), tmp_path, 1, [seen])
    assert 0 < float(seen.logged["grpo/sampler_gap"]) < float(seen.logged["grpo/sampler_gap_max"]) < 1e-3
    masked = seen.rollout.sampler_log_probs[seen.rollout.mask]
    torch.testing.assert_close(masked, seen.rollout.old_log_probs[seen.rollout.mask], atol=1e-3, rtol=0)


def test_a_correction_uses_the_probabilities_of_the_sampler(tmp_path):
    seen = Seen()
    fit(build(loss=GRPO(kl_coef=0.0, correction="sequence")), tmp_path, 1, [seen])
    # In float32 the two are nearly equal, so nearly all of the sample counts.
    assert 0.999 < float(seen.logged["grpo/effective_samples"]) <= 1 + 1e-6
    with pytest.raises(ValueError, match=r"loss.correction=token with sampling.top_p=0.9"):
        build(loss=GRPO(correction="token"), sampling=Sampling(group_size=2, top_p=0.9))


@pytest.mark.parametrize("loss", [GRPO(kl_coef=0.0), GSPO(kl_coef=0.0)], ids=["grpo", "gspo"])
def test_a_rollout_in_flight_resumes_exactly(tmp_path, loss):
    uninterrupted, resumed, file = build(loss=loss, updates_per_rollout=2), None, tmp_path / "one.ckpt"
    saves = SaveAt(1, file)
    fit(uninterrupted, tmp_path, 3, [saves], enable_checkpointing=True)
    [[stored]] = torch.load(file, weights_only=True)["vr1_rollouts"]
    assert stored["advantages"].shape == stored["tokens"].shape
    resumed = build(loss=loss, updates_per_rollout=2)
    fit(resumed, tmp_path, 3, ckpt_path=file)
    after = dict(resumed.policy.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in uninterrupted.policy.named_parameters())


class Swapped(Qwen25VL):
    """Reads the second corner of every box as the first."""

    def read(self, completion):
        answer = super().read(completion)
        return replace(answer, boxes=answer.boxes[:, [2, 3, 0, 1]])


def test_training_reads_boxes_by_the_rules_of_the_reward(tmp_path):
    counts = []
    for rules in (None, BoxRules(swapped="drop")):
        seen, module = Seen(), build(family=Swapped(), reward=Reward(box_rules=rules))
        fit(module, tmp_path, 1, [seen])
        counts.append(sum(map(len, seen.scored.detections)))
        assert len(seen.scored.box_advantages) == len(seen.scored.detections) == 8
    assert counts[0] > 8 > counts[1] == 0


class WithoutPositions(Qwen25VL):
    """Reads boxes and does not say where they are."""

    def read(self, completion):
        return replace(super().read(completion), item_spans=(), box_spans=())


def test_a_family_without_positions_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"WithoutPositions.read does not say where .* Answer.item_spans"):
        fit(build(family=WithoutPositions()), tmp_path, 1)
