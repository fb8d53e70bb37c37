"""Training equals a restatement of it in plain PyTorch and transformers, which imports nothing of the method.

The restatement samples by a loop over whole forwards without a cache, scores texts by hand, and writes out GRPO's loss,
AdamW's steps, gradient accumulation and clipping. It shares with vr1 the model's folder, the images and the questions.
"""

import copy
import json
import re
import shutil
import zlib
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from peft import LoraConfig, get_peft_model
from scipy.optimize import linear_sum_assignment
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.trainers import trainer
from vr1.data import SceneDataModule, SceneStyle
from vr1.losses import GRPO
from vr1.modules.grpo import GRPOModule
from vr1.modules.supervised_term import SupervisedTerm
from vr1.policy import Lora, PolicySource
from vr1.policy.loading import EMBEDDED_MODEL
from vr1.rewards import Reward, RewardTerm
from vr1.rollout import Sampling

SEED, RECORDS, PROMPTS, GROUP = 5, 10, 2, 3
CLIP_NORM, CLIP_LOW, CLIP_HIGH, EPSILON = 0.5, 0.2, 0.28, 1e-4


@dataclass(frozen=True, kw_only=True)
class Case:
    """The settings that differ; the constants above are the same for all."""

    accumulate: int = 1
    updates: int = 1
    kl: float = 0.0
    temperature: float = 1.0
    top_p: float = 1.0
    lora: bool = False
    resample: int = 0
    levels: int = 13
    mask_truncated: bool = False
    recomputed: bool = False
    # Weight of a supervised term.
    supervised: float = 0.0
    # The trained model that comes with vr1, with the method's own rewards, instead of an untrained one.
    trained: bool = False
    steps: int = 5
    limit: int = 6
    lr: float = 5e-4


CASES = {
    "plain": Case(),
    "kl": Case(kl=0.2, temperature=0.7),
    "several_updates": Case(updates=2),
    "accumulation": Case(accumulate=2, kl=0.1),
    "accumulation_and_updates": Case(accumulate=2, updates=2, kl=0.2, temperature=0.7),
    "adapters": Case(lora=True, lr=1e-2, accumulate=2, updates=2, kl=0.2, temperature=0.7),
    "top_p": Case(top_p=0.8, temperature=1.3),
    "recomputed": Case(recomputed=True, temperature=1.3, kl=0.1),
    "resampled": Case(resample=2, levels=2, kl=0.1),
    "truncated_do_not_count": Case(mask_truncated=True, kl=0.1, temperature=0.5, updates=2),
    # True answers are cut after their first box.
    "supervised": Case(supervised=0.3, temperature=0.7, accumulate=2, updates=2, kl=0.2, limit=9),
    "supervised_adapters": Case(supervised=2.0, lora=True, lr=1e-2, recomputed=True, limit=9),
    "trained_model": Case(trained=True, kl=0.1, temperature=1.1, steps=2, limit=24),
}


def score(text, levels):
    """A reward that an untrained model earns differently by every completion."""
    return zlib.crc32(text.encode()) % levels / levels


BOX = re.compile(r'\{"bbox_2d": \[(\d+), (\d+), (\d+), (\d+)\], "label": "([^"\\]*)"\}')


def overlap(box, other):
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((box[2] - box[0]) * (box[3] - box[1]) + (other[2] - other[0]) * (other[3] - other[1]) - shared)


def paper_reward(text, record, input_size):
    """The three rewards of the paper in its first stage, for answers in Qwen2.5-VL's form, cut or not."""
    fenced = re.fullmatch(r"```json\n(.*)\n```", text, re.DOTALL)
    try:
        answer = json.loads(fenced[1]) if fenced else None
    except ValueError:
        answer = None
    (width, height), (wide, high) = record.image_size, input_size
    written = [([int(number) for number in item[:4]], item[4]) for item in BOX.findall(text)]
    inside = all(0 <= x1 < x2 <= wide and 0 <= y1 < y2 <= high for (x1, y1, x2, y2), _ in written)
    valid = answer is not None and len(answer) == len(written) and inside and all(label.strip() for _, label in written)
    if not len(record.labels):
        return 3.0 * (valid and not written)
    boxes = []
    for (x1, y1, x2, y2), label in written:
        (x1, x2), (y1, y2) = sorted([min(x1, wide), min(x2, wide)]), sorted([min(y1, high), min(y2, high)])
        boxes.append(([x1 * width / wide, y1 * height / high, x2 * width / wide, y2 * height / high], label))
    if not boxes:
        return float(valid)
    true = list(zip(record.boxes_xyxy.tolist(), record.labels, strict=True))
    ious = np.array([[overlap(box, other) for other, _ in true] for box, _ in boxes])
    agree = np.array([[label == other for _, other in true] for _, label in boxes])
    rows, columns = linear_sum_assignment(ious + 1e-9 * agree, maximize=True)
    reached = (ious * agree)[rows, columns]
    recall, precision = sum(reached >= 0.5) / len(true), sum(f(value) for value in reached) / len(boxes)
    return float(valid) + f(recall) + precision


def f(value):
    return 0.0 if value < 0.5 else 1.0 if value >= 0.75 else float(value)


def true_answer(record, input_size):
    """The true boxes from left to right, in Qwen2.5-VL's form."""
    items = []
    for box, label in sorted(zip(record.boxes_xyxy.tolist(), record.labels, strict=True)):
        scale = [input_size[side % 2] / record.image_size[side % 2] for side in range(4)]
        corners = ", ".join(str(round(value * factor)) for value, factor in zip(box, scale, strict=True))
        items.append(f'\t{{"bbox_2d": [{corners}], "label": "{label}"}}')
    return "```json\n[]\n```" if not items else "```json\n[\n" + ",\n".join(items) + "\n]\n```"


class Checksum(RewardTerm):
    """The reward `score` of the text."""

    def __init__(self, levels):
        super().__init__()
        self.levels = levels

    def score(self, match, criterion):
        return score(match.detections.completion, self.levels)


class Diary(Callback):
    """What every step came to, and the answers of every batch."""

    names = ("loss", "kl", "ratio", "clip_fraction", "entropy", "zero_variance_groups", "truncated", "supervised_loss")

    def __init__(self):
        self.rows, self.texts = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            logged = trainer.callback_metrics
            row = {name: float(logged[f"grpo/{name}"]) for name in self.names if f"grpo/{name}" in logged}
            self.rows.append({**row, "reward": float(logged["reward/total"])})
        self.texts.append(module.training_state.scored_groups.texts)


def scenes(case, **settings):
    style = SceneStyle(num_objects=(1, 4))
    return SceneDataModule(style, train_scenes=RECORDS, val_scenes=1, num_workers=0, seed=SEED, **settings)


def train(case, path, folder):
    """The run by vr1: its module, its weights before, and what it logged."""
    module = GRPOModule(
        policy=PolicySource(
            path=str(path), lora=Lora(rank=2, alpha=4) if case.lora else None, gradient_checkpointing=case.recomputed
        ),
        reward=Reward() if case.trained else Reward(terms={"checksum": Checksum(case.levels)}),
        sampling=Sampling(group_size=GROUP, temperature=case.temperature, top_p=case.top_p, max_new_tokens=case.limit),
        loss=GRPO(case.kl, CLIP_LOW, CLIP_HIGH, case.mask_truncated),
        updates_per_rollout=case.updates,
        resample_zero_variance=case.resample,
        supervised=SupervisedTerm(weight=case.supervised) if case.supervised else None,
        seed=SEED,
        optimizer=partial(torch.optim.AdamW, lr=case.lr, weight_decay=0.1, eps=EPSILON),
        lr_scheduler=partial(torch.optim.lr_scheduler.LinearLR, start_factor=0.5, total_iters=4),
    )
    module.configure_model()
    before = weights(module)
    diary = Diary()
    run = trainer(
        folder,
        [diary],
        max_steps=case.steps,
        max_epochs=-1,
        gradient_clip_val=CLIP_NORM,
        accumulate_grad_batches=case.accumulate,
    )
    run.fit(module, scenes(case, batch_size=PROMPTS))
    return module, before, diary


def weights(module):
    return {name.removeprefix("policy.network."): value.clone() for name, value in module.state_dict().items()}


class Restated:
    """The same training; of vr1 only the records and their questions."""

    def __init__(self, case, path, before, records, questions):
        self.case, self.records, self.questions = case, records, questions
        self.processor = AutoProcessor.from_pretrained(path)
        self.model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32)
        if case.lora:
            names = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
            target = rf".*language_model.*\.({names})"
            self.model = get_peft_model(self.model, LoraConfig(r=2, lora_alpha=4, target_modules=target))
        # Adapters begin at random; all else is what the folder holds.
        missing = self.model.load_state_dict({n: v for n, v in before.items() if "lora" in n}, strict=False)
        assert not missing.unexpected_keys
        self.reference = None if case.lora else copy.deepcopy(self.model)
        network = self.model.get_base_model() if case.lora else self.model
        self.ends = torch.tensor(network.generation_config.eos_token_id)
        names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        self.forbidden = [getattr(network.config, name) for name in names]
        self.rows, self.texts = [], []

    def encode(self, record):
        """Inputs of one prompt, ``[1, P]``."""
        content = [{"type": "image"}, {"type": "text", "text": self.questions[record.image_id]}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return self.processor(text=[text], images=[record.image], return_tensors="pt")

    def logits(self, model, encoded, tokens, mask):
        """Of each place of the completions ``[G, C]``, and of the one after: ``[G, C + 1, V]``."""
        group = len(tokens)
        ids = torch.cat([encoded["input_ids"].expand(group, -1), tokens], dim=1)
        kinds = torch.cat([encoded["mm_token_type_ids"].expand(group, -1), torch.zeros_like(tokens)], dim=1)
        answer = model(
            input_ids=ids,
            attention_mask=torch.cat([encoded["attention_mask"].expand(group, -1), mask.long()], dim=1),
            mm_token_type_ids=kinds,
            pixel_values=encoded["pixel_values"].repeat(group, 1),
            image_grid_thw=encoded["image_grid_thw"].repeat(group, 1),
            use_cache=False,
        )
        return answer.logits[:, encoded["input_ids"].shape[1] - 1 :].float()

    @torch.no_grad()
    def sample(self, record, number):
        """Completions of one record: tokens and mask ``[G, C]``, texts, and which are finished."""
        encoded = self.encode(record)
        uniform = torch.from_numpy(np.random.default_rng([number, record.image_id]).random((GROUP, self.case.limit)))
        tokens = torch.zeros(GROUP, 0, dtype=torch.long)
        mask = torch.zeros(GROUP, 0, dtype=torch.bool)
        running = torch.ones(GROUP, dtype=torch.bool)
        for place in range(self.case.limit):
            logits = self.logits(self.model, encoded, tokens, mask)[:, -1]
            logits[:, self.forbidden] = -torch.inf
            probability = torch.softmax(logits / self.case.temperature, dim=-1)
            chosen = [self.draw(row, float(chance)) for row, chance in zip(probability, uniform[:, place], strict=True)]
            tokens = torch.cat([tokens, torch.tensor(chosen)[:, None]], dim=1)
            mask = torch.cat([mask, running[:, None]], dim=1)
            running = running & ~torch.isin(tokens[:, -1], self.ends)
            if not running.any():
                break
        texts = [
            self.processor.tokenizer.decode(row[keep], skip_special_tokens=True)
            for row, keep in zip(tokens, mask, strict=True)
        ]
        return encoded, tokens, mask, texts, ~running

    def draw(self, probability, chance):
        """The first token at which the sum of probabilities exceeds the chance, with top-p the likeliest first."""
        values = probability.double().numpy()
        order = np.arange(len(values))
        if self.case.top_p < 1:
            order = np.argsort(-values, kind="stable")
            before = np.cumsum(values[order]) - values[order]
            values[order[before >= self.case.top_p]] = 0.0
        sums = np.cumsum(values[order])
        return int(order[np.searchsorted(sums, chance * sums[-1], side="right")])

    def log_probs(self, model, encoded, tokens, mask):
        """Log-probs and entropies ``[G, C]`` at the temperature of sampling."""
        values = torch.log_softmax(self.logits(model, encoded, tokens, mask)[:, :-1] / self.case.temperature, dim=-1)
        return values.gather(-1, tokens[..., None])[..., 0], -(values.exp() * values).sum(-1).detach()

    def reward(self, text, record, encoded):
        if not self.case.trained:
            return score(text, self.case.levels)
        return paper_reward(text, record, self.input_size(encoded))

    def input_size(self, encoded):
        """Width and height of the resized image."""
        _, rows, columns = encoded["image_grid_thw"][0].tolist()
        patch = self.processor.image_processor.patch_size
        return columns * patch, rows * patch

    def roll_out(self, record, step):
        """A group with all that stays the same while the policy is updated on it."""
        case = self.case
        for attempt in range(case.resample + 1):
            number = (SEED * 1_000_003 + step) * (case.resample + 1) + attempt
            encoded, tokens, mask, texts, finished = self.sample(record, number)
            rewards = torch.tensor([self.reward(text, record, encoded) for text in texts])
            if len(set(rewards.tolist())) > 1:
                break
        advantages = torch.zeros(GROUP)
        if len(set(rewards.tolist())) > 1:
            advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        counted = mask & finished[:, None] if case.mask_truncated else mask
        reference = None
        if case.kl:
            with torch.no_grad():
                if case.lora:
                    with self.model.disable_adapter():
                        reference, _ = self.log_probs(self.model, encoded, tokens, mask)
                else:
                    reference, _ = self.log_probs(self.reference, encoded, tokens, mask)
        return {
            "record": record,
            "encoded": encoded,
            "tokens": tokens,
            "mask": mask,
            "counted": counted,
            "texts": texts,
            "rewards": rewards,
            "advantages": advantages,
            "reference": reference,
            "finished": finished,
        }

    def loss(self, groups):
        """The loss of the groups of one batch; and of each token the KL term, ratio, whether it is clipped, entropy."""
        completions, tokens = [], []
        for group in groups:
            values, entropy = self.log_probs(self.model, group["encoded"], group["tokens"], group["mask"])
            group.setdefault("old", values.detach())
            for row, advantage in enumerate(group["advantages"].tolist()):
                losses = []
                for place in group["counted"][row].nonzero()[:, 0].tolist():
                    ratio = (values[row, place] - group["old"][row, place]).exp()
                    now = float(ratio.detach())
                    # A gain beyond the range is worth no more than at its end, and teaches nothing.
                    is_clipped = (advantage > 0 and now > 1 + CLIP_HIGH) or (advantage < 0 and now < 1 - CLIP_LOW)
                    clipped = 1 + CLIP_HIGH if advantage > 0 else 1 - CLIP_LOW
                    loss = torch.tensor(-clipped * advantage) if is_clipped else -ratio * advantage
                    kl = torch.zeros(())
                    if group["reference"] is not None:
                        difference = group["reference"][row, place] - values[row, place]
                        kl = difference.exp() - difference - 1
                    losses.append(loss + self.case.kl * kl)
                    tokens.append((float(kl.detach()), now, is_clipped, float(entropy[row, place])))
                if losses:
                    completions.append(sum(losses) / len(losses))
        return sum(completions) / len(completions) if completions else 0 * values.sum(), tokens

    def supervised_loss(self, groups):
        """Of the true answers of one batch: the negative log-probability of all their tokens, by their number."""
        total, count = 0.0, 0
        for group in groups:
            text = true_answer(group["record"], self.input_size(group["encoded"]))
            ids = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
            tokens = torch.tensor([[*ids, int(self.ends[0])]])[:, : self.case.limit]
            values, _ = self.log_probs(self.model, group["encoded"], tokens, torch.ones_like(tokens, dtype=torch.bool))
            total, count = total - values.sum(), count + values.numel()
        return total / count

    def figures(self, groups, losses, tokens):
        """What is logged of a step."""
        kl, ratio, clipped, entropy = np.array(tokens or [[0.0] * 4], float).mean(0)
        rewards = torch.stack([group["rewards"] for group in groups])
        finished = torch.stack([group["finished"] for group in groups])
        return {
            "loss": sum(losses) / len(losses),
            "ratio": ratio,
            "clip_fraction": clipped,
            "entropy": entropy,
            "reward": float(rewards.mean()),
            "zero_variance_groups": float((rewards == rewards[:, :1]).all(1).float().mean()),
            "truncated": float((~finished).float().mean()),
        } | ({"kl": kl} if self.case.kl else {})

    def train(self):
        case = self.case
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=case.lr, weight_decay=0.1, eps=EPSILON)
        window = PROMPTS * case.accumulate
        in_epoch = len(self.records) // window
        for step in range(case.steps):
            epoch, place = divmod(step // case.updates, in_epoch)
            order = np.random.default_rng([SEED, epoch]).permutation(len(self.records))
            records = [self.records[row] for row in order[place * window : (place + 1) * window]]
            if step % case.updates == 0:
                groups = [self.roll_out(record, step) for record in records]
            optimizer.zero_grad()
            losses, tokens, supervised = [], [], []
            for first in range(0, window, PROMPTS):
                batch = groups[first : first + PROMPTS]
                loss, of_tokens = self.loss(batch)
                whole = loss
                if case.supervised:
                    supervised.append(self.supervised_loss(batch))
                    whole = loss + case.supervised * supervised[-1]
                (whole / case.accumulate).backward()
                losses.append(float(loss.detach()))
                tokens += of_tokens
                self.texts.append([group["texts"] for group in batch])
            self.rows.append(self.figures(groups, losses, tokens))
            if supervised:
                self.rows[-1]["supervised_loss"] = float(sum(supervised).detach()) / len(supervised)
            torch.nn.utils.clip_grad_norm_(trained, CLIP_NORM)
            for settings in optimizer.param_groups:
                settings["lr"] = case.lr * min(1.0, 0.5 + 0.5 * step / 4)
            optimizer.step()


@pytest.fixture(scope="module")
def ending_model(tiny_model, tmp_path_factory):
    """The untrained model, with so many end tokens that its completions have all lengths."""
    folder = tmp_path_factory.mktemp("models") / "ending"
    shutil.copytree(tiny_model, folder)
    file = folder / "generation_config.json"
    settings = json.loads(file.read_text())
    settings["eos_token_id"] += range(100, 800, 5)
    file.write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_training_equals_its_restatement(case, ending_model, tmp_path):
    path = EMBEDDED_MODEL if case.trained else ending_model
    module, before, diary = train(case, path, tmp_path)
    source = scenes(case).build("train")
    records = [source[row] for row in range(RECORDS)]
    questions = {record.image_id: module.family.instruction(record.categories) for record in records}
    assert len({record.image_size for record in records}) > 1, "all prompts are of one length"
    plain = Restated(case, path, before, records, questions)
    plain.train()

    # The case shows what it is about.
    assert 0 < np.mean([row["truncated"] for row in plain.rows]) < 1
    assert case.updates == 1 or any(row["clip_fraction"] > 0 for row in plain.rows)
    assert not case.kl or any(row["kl"] > 1e-3 for row in plain.rows)

    assert len(diary.rows) == len(plain.rows) == case.steps
    assert len(diary.texts) == len(plain.texts) == case.steps * case.accumulate
    for number, (ours, theirs) in enumerate(zip(diary.texts, plain.texts, strict=True)):
        # Between two rollouts the newest one is shown, which with accumulation is the last batch's.
        if number // case.accumulate % case.updates == 0:
            assert ours == theirs, f"batch {number}"
    for number, (ours, theirs) in enumerate(zip(diary.rows, plain.rows, strict=True)):
        fresh = number % case.updates == 0
        for name in theirs.keys() if fresh else ("loss", "kl", "ratio", "clip_fraction", "entropy", "supervised_loss"):
            if name in theirs:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-5), f"step {number}: {name}"
    after, expected = weights(module), plain.model.state_dict()
    assert after.keys() == expected.keys()
    for name, value in after.items():
        assert float((value - expected[name]).abs().max()) < 1e-5, name
    assert max(float((value - before[name]).abs().max()) for name, value in after.items()) > 1e-4, "nothing was learned"
