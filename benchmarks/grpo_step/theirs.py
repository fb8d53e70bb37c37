"""TRL's side: `GRPOTrainer` in the fastest configuration that it has for vision-language models without a server.

Completions of the step are generated as one batch by transformers' ``generate`` with a dynamic cache, and trained on as
one batch. Its continuous batching does not support vision-language models.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Image
from transformers import AutoProcessor, BitsAndBytesConfig, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from grpo_step.ours import policy_source
from grpo_step.questions import questions
from grpo_step.settings import StepSettings
from grpo_step.turns import Turns
from vr1.detections import read_detections
from vr1.families import Qwen25VL
from vr1.policy.loading import UNQUANTIZED
from vr1.prompts import PromptEncoder
from vr1.rewards import Reward
from vr1.types import DetectionRecord, Targets


class _Turn(TrainerCallback):
    """Waits for the turn, and ends it."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.turns.wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        parts = self.turns.parts
        parts["optimizer"] = self.turns.now() - self.turns.started - parts.pop("until optimizer")
        self.turns.done()


class _Timed(GRPOTrainer):
    """Measures the parts of each step, under vr1's names."""

    turns: Turns

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        started = self.turns.now()
        yield
        self.turns.parts[name] = self.turns.parts.get(name, 0.0) + self.turns.now() - started

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        with self._part("prefill and decode"):
            return super()._generate_single_turn(*args, **kwargs)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        with self._part("reward"):
            return super()._calculate_rewards(*args, **kwargs)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        with self._part("policy forward" if torch.is_grad_enabled() else "reference"):
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        output = super().training_step(*args, **kwargs)
        parts = self.turns.parts
        until = self.turns.now() - self.turns.started
        parts["policy backward"] = until - sum(parts.values())
        parts["until optimizer"] = until
        return output

    def _prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
        with self._part("inputs"):
            output = super()._prepare_inputs(*args, **kwargs)
        parts = self.turns.parts
        # The rest, without sampling, reward and reference: prompts are prepared twice, for generate and for training.
        parts["prompt"] = parts.pop("inputs") - sum(
            parts.get(name, 0.0) for name in ("prefill and decode", "reward", "reference")
        )
        return output


def run(turns: Turns, settings: StepSettings, folder: Path, steps: int) -> None:
    """Train for some steps, each when it is this side's turn."""
    family = Qwen25VL()
    processor = AutoProcessor.from_pretrained(folder, padding_side="left")
    encoder = PromptEncoder(processor, family, max_prompt_tokens=32768)
    records = questions(settings, encoder, steps)
    rows = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": family.instruction(record.categories)}] for record in records],
            "image": [_png(record) for record in records],
            "record": list(range(len(records))),
        }
    ).cast_column("image", Image())
    source = policy_source(settings, folder)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, settings.dtype),
        llm_int8_skip_modules=list(UNQUANTIZED),
    )
    trainer = _Timed(
        model=str(folder),
        reward_funcs=_reward_function(records, encoder),
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            model_init_kwargs={"dtype": settings.dtype, "attn_implementation": "sdpa"},
            per_device_train_batch_size=settings.prompts * settings.group_size,
            num_generations=settings.group_size,
            max_completion_length=settings.new_tokens,
            max_steps=steps,
            beta=settings.kl_coef,
            loss_type="grpo",
            learning_rate=1e-6,
            optim="adamw_torch_fused",
            max_grad_norm=1.0,
            use_cpu=settings.device == "cpu",
            bf16=settings.device == "cuda",
            gradient_checkpointing=settings.checkpointing,
            shuffle_dataset=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=rows,
        processing_class=processor,
        peft_config=source.lora_config() if settings.lora else None,
        quantization_config=quantization if settings.quantize else None,
        callbacks=[_Turn(turns)],
    )
    trainer.turns = turns
    trainer.train()


def _reward_function(records: list[DetectionRecord], encoder: PromptEncoder) -> Any:
    """vr1's rewards with the signature of TRL's reward functions."""
    reward, family, input_size = Reward(), Qwen25VL(), encoder(records[:1]).input_sizes[0]

    def detection_reward(completions: list[Any], record: list[int], **_: Any) -> list[float]:
        asked = [records[index] for index in record]
        found = [
            read_detections(completion[0]["content"], family, one.image_size, input_size)
            for completion, one in zip(completions, asked, strict=True)
        ]
        return reward(found, [Targets(boxes_xyxy=one.boxes_xyxy, labels=one.labels) for one in asked]).total.tolist()

    return detection_reward


def _png(record: DetectionRecord) -> dict[str, bytes]:
    buffer = io.BytesIO()
    record.image.save(buffer, format="PNG")
    return {"bytes": buffer.getvalue()}
