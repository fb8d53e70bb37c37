"""Losses and gradients against TRL's `GRPOTrainer`, given the same prompts, completions and advantages.

TRL runs each completion in a row of its own, with its image; here images and prompts are shared. The extra
`bench` of pyproject.toml installs it.
"""

import pytest
import torch

from vr1.losses import GRPO, GSPO, DrGRPO, PolicyTerms, TokenMean

trl = pytest.importorskip("trl", reason="TRL is not installed (extra `bench`)")

TEMPERATURE, KL, LOW, HIGH, LIMIT = 0.7, 0.1, 0.2, 0.28, 9
SETTINGS = {"kl_coef": KL, "clip_low": LOW, "clip_high": HIGH}
# What each loss is called there.
PAIRS = {
    "grpo": (GRPO(**SETTINGS), {"loss_type": "grpo"}),
    "token_mean": (TokenMean(**SETTINGS), {"loss_type": "bnpo"}),
    "dr_grpo": (DrGRPO(LIMIT, **SETTINGS), {"loss_type": "dr_grpo"}),
    "gspo": (GSPO(**SETTINGS), {"loss_type": "grpo", "importance_sampling_level": "sequence"}),
}


def trainer_of(source, folder, settings, rewards=None):
    from datasets import Dataset

    return trl.GRPOTrainer(
        model=source.path,
        reward_funcs=rewards or (lambda completions, **_: [0.0] * len(completions)),
        args=trl.GRPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=LIMIT,
            temperature=TEMPERATURE,
            beta=KL,
            epsilon=LOW,
            epsilon_high=HIGH,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            # A factor on the KL term, which the paper does not have.
            use_bias_correction_kl=False,
            report_to="none",
            model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
            **settings,
        ),
        train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": "?"}]] * 4}),
        processing_class=source.processor(),
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("loss", "settings"), PAIRS.values(), ids=PAIRS)
def test_loss_and_gradients_are_trls(source, prompts, ragged_completions, tmp_path, loss, settings):
    tokens, mask = ragged_completions
    batch, group, length = tokens.shape
    generator = torch.Generator().manual_seed(0)
    advantages = torch.randn(batch, group, generator=generator)
    policy = source.load().eval()
    log_probs, _ = policy.log_probs(prompts, tokens, mask, TEMPERATURE)
    old = log_probs.detach() + 0.3 * torch.randn(tokens.shape, generator=generator) * mask
    reference = log_probs.detach() + 0.2 * torch.randn(tokens.shape, generator=generator) * mask
    value, figures = loss(
        PolicyTerms(
            log_probs=log_probs, old_log_probs=old, reference_log_probs=reference, advantages=advantages, mask=mask
        )
    )
    value.backward()

    trainer = trainer_of(source, tmp_path, settings)
    trainer.current_gradient_accumulation_steps = 1
    model = trainer.model.train()
    completions = tokens.flatten(0, 1), mask.flatten(0, 1).long()
    kinds = prompts.token_types.repeat_interleave(group, dim=0)
    pixels = prompts.vision["pixel_values"].split(prompts.vision["image_grid_thw"].prod(1).tolist())
    theirs = trainer._compute_loss(
        model,
        {
            "prompt_ids": prompts.tokens.repeat_interleave(group, dim=0),
            "prompt_mask": prompts.mask.long().repeat_interleave(group, dim=0),
            "completion_ids": completions[0],
            "completion_mask": completions[1],
            "advantages": advantages.flatten(),
            "old_per_token_logps": old.flatten(0, 1),
            "ref_per_token_logps": reference.flatten(0, 1),
            "pixel_values": torch.cat([part for part in pixels for _ in range(group)]),
            "image_grid_thw": prompts.vision["image_grid_thw"].repeat_interleave(group, dim=0),
            "num_images": [1] * batch * group,
            "mm_token_type_ids": torch.cat([kinds, torch.zeros(batch * group, length, dtype=torch.long)], dim=1),
        },
    )
    theirs.backward()

    assert float(value.detach()) == pytest.approx(float(theirs.detach()), rel=1e-4, abs=1e-5)
    logged = trainer._metrics["train"]
    assert float(figures["kl"]) == pytest.approx(logged["kl"][-1], rel=1e-4)
    clipped = logged["clip_ratio/region_mean"][-1]
    if not isinstance(loss, GSPO):
        # TRL counts the sequences of GSPO, here their tokens count.
        assert float(figures["clip_fraction"]) == pytest.approx(clipped, abs=1e-6)
    assert clipped > 0
    gradients = dict(model.named_parameters())
    largest = max(float(parameter.grad.abs().max()) for parameter in gradients.values())
    for name, parameter in policy.network.named_parameters():
        difference = float((parameter.grad - gradients[name].grad).abs().max())
        assert difference < 1e-4 * largest, name
