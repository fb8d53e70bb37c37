"""Scores of boxes against probabilities that are read off the model token by token."""

import math
from importlib import import_module

import numpy as np
import pytest
import torch

from tests.policy.tiny_models import write_tiny
from vr1.data import SceneDataModule, SceneStyle
from vr1.detections import box_scores, token_ends
from vr1.families import Florence2, Griffon, PaliGemma, Qwen2VL, Qwen25VL
from vr1.modules.grpo import GRPOModule
from vr1.policy import PolicySource
from vr1.rollout import Sampling
from vr1.rollout.sampling import Decoded
from vr1.types import as_boxes

BOXES = as_boxes([[12, 34, 56, 78], [1, 2, 30, 40], [12, 34, 56, 78]])


def characters(text, chance):
    """One token a character, each of the given probability."""
    return list(range(1, len(text) + 1)), np.log([chance(position) for position in range(len(text))])


@pytest.mark.parametrize(
    ("family", "written"),
    [
        (Qwen25VL(), "12, 34, 56, 78"),
        (Qwen2VL(), "12,34),(56,78"),
        (PaliGemma(), "0034><loc0012><loc0078><loc0056"),
        (Griffon(), "0.120,0.340,0.560,0.780"),
        (Florence2(), "12><loc_34><loc_56><loc_78"),
    ],
    ids=["json", "markers", "location tokens", "decimals", "bins"],
)
def test_each_box_has_the_tokens_of_its_own_numbers(family, written):
    text = family.write(BOXES / (100 if family.frame == 1.0 else 1), ["cat 7", "dog", "cat 7"])
    starts = [text.index(written), text.rindex(written)]
    assert starts[0] < starts[1]
    inside = {place for start in starts for place in range(start, start + len(written))}
    ends, log_probs = characters(text, lambda place: 0.25 if place in inside else 1.0)
    scores = box_scores(family.read(text).box_spans, ends, log_probs)
    assert scores == pytest.approx([0.25, 1.0, 0.25])


def test_a_token_that_reaches_into_the_box_counts():
    text = "[[1, 2, 3, 4], [5, 6, 7, 8]]"
    scores = box_scores(Qwen25VL().read(text).box_spans, [4, 17, 28], np.log([0.5, 0.5, 0.02]))
    assert scores == pytest.approx([0.5, 0.1])  # the second token holds the end of one and the start of the other


def test_the_answer_counts_and_not_the_thought_before_it():
    text = "<think>[1, 2, 3, 4]</think><answer>[1, 2, 3, 4]</answer>"
    ends, log_probs = characters(text, lambda place: 0.5 if place > text.index("<answer>") else 0.1)
    assert box_scores(Qwen25VL().read(text).box_spans, ends, log_probs) == pytest.approx([0.5])


def test_boxes_without_a_position_get_the_whole_answers_score():
    text = "[1, 2, 3, 4]"
    ends, log_probs = characters(text, lambda place: 0.25 if 0 < place < 11 else 1.0)
    [span] = Qwen25VL().read(text).box_spans
    whole = np.exp(log_probs.mean())
    assert box_scores([None, span], ends, log_probs) == pytest.approx([whole, 0.25])
    assert box_scores([None], [], np.zeros(0)).tolist() == [0.0]
    assert box_scores([], ends, log_probs).shape == (0,)


def test_many_boxes_take_linear_time():
    boxes = as_boxes([[row % 7, row % 5, 10, 20] for row in range(10_000)])
    text = Qwen25VL().write(boxes, ["cat"] * len(boxes))
    ends, log_probs = characters(text, lambda place: 0.5)
    assert len(box_scores(Qwen25VL().read(text).box_spans, ends, log_probs)) == len(boxes)


def test_ends_are_those_of_the_decoded_beginnings(source):
    tokenizer = source.processor().tokenizer
    text = '```json\n[\n\t{"bbox_2d": [1, 22, 333, 41], "label": "cät ☃ 漢 😀"}\n]\n```'
    tokens = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ends = token_ends(tokenizer, tokens, {tokenizer.eos_token_id})
    for end, count in zip(ends, range(1, len(tokens) + 1), strict=True):
        beginning = tokenizer.decode(tokens[:count], skip_special_tokens=True).rstrip("\ufffd")
        assert end == len(beginning)
    assert ends[-2:] == [len(text)] * 2


WRITTEN = '[{"bbox_2d": [7, 8, 40, 50], "label": "cat"}, {"bbox_2d": [7, 8, 9, 9], "label": "dog"}]'


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "paligemma"])
@pytest.mark.filterwarnings("ignore:policy. a paligemma model")
def test_scores_of_a_real_model(kind, source, tmp_path, monkeypatch):
    """The score of a box is the geometric mean of its tokens' probabilities as they were sampled."""
    if kind != "qwen2_5_vl":
        write_tiny(kind, tmp_path)
        source = PolicySource(path=str(tmp_path))
    module = GRPOModule(policy=source, evaluation=Sampling(group_size=1, temperature=0.0))
    module.configure_model()
    module.policy.eval()
    tokenizer = module.processor.tokenizer
    written = (
        WRITTEN if kind == "qwen2_5_vl" else PaliGemma().write(as_boxes([[7, 8, 40, 50], [7, 8, 9, 11]]), ["a", "b"])
    )
    tokens = torch.tensor([*tokenizer(written, add_special_tokens=False)["input_ids"], module.policy.eos_tokens[0]])
    data = SceneDataModule(SceneStyle(), test_scenes=2)
    prompts = module.encoder([data.build("test")[row] for row in range(2)])

    log_probs = -torch.rand(2, len(tokens), generator=torch.Generator().manual_seed(0))

    def decoded(policy, prompts, sampling, draws, **_):
        rows = tokens.repeat(2, 1)
        return Decoded(rows, torch.full((2,), len(tokens)), torch.ones(2, dtype=torch.bool), log_probs)

    for way in ("decode_shared", "decode_unshared"):
        monkeypatch.setattr(import_module("vr1.rollout.generate"), way, decoded)
    with torch.no_grad():
        answers = module.answer(prompts)
        for row, answer in enumerate(answers):
            assert answer.completion == written
            draws = log_probs[row].double()
            texts = [tokenizer.decode(tokens[: count + 1], skip_special_tokens=False) for count in range(len(tokens))]
            marks = ("[7", "50]", "[7", "9]") if kind == "qwen2_5_vl" else ("<loc0008><", "40>", "<loc0008><", "9>")
            spans, reached = [], 0
            for opening, closing in zip(marks[::2], marks[1::2], strict=True):
                start = written.index(opening, reached) + 1
                reached = written.index(closing, start + 6) + len(closing) - 1
                spans.append((start, reached))
            for (start, end), score in zip(spans, answer.scores, strict=True):
                own = [
                    draws[place]
                    for place, text in enumerate(texts)
                    if len(text) > start and (place == 0 or len(texts[place - 1]) < end)
                ]
                assert score == pytest.approx(math.exp(float(sum(own) / len(own))), rel=1e-3)
    [first, _] = module.predictions(prompts, answers)
    assert first.detections.scores.tolist() == list(answers[0].scores)
