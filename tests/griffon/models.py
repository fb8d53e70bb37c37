"""Tiny models of Griffon-G, in folders of vr1 and in the layout of the released weights."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import CLIPImageProcessor

from vr1.families import Griffon
from vr1.griffon.released import to_released
from vr1.policy.tiny_griffon import GriffonSizes, build_model, build_processor, build_tokenizer
from vr1.rollout.sampler import SharedPrefixSampler
from vr1.types import Rollout

# A window of 16 tokens; prompts have 60 and more.
SMALL = GriffonSizes(
    hidden=64,
    layers=2,
    heads=4,
    kv_heads=2,
    intermediate=96,
    window=16,
    vision_hidden=32,
    vision_layers=3,
    vision_heads=2,
    vision_intermediate=48,
    image=56,
    patch=8,
)
TOWER = "clip-vit-large-patch14-336_to_1022"
# What the released code reads from config.json besides Gemma 2's own keys.
RELEASED_KEYS = {
    "model_type": "gemma2_Griffon",
    "architectures": ["GriffonGemma2ForCausalLM"],
    "mm_vision_tower": f"checkpoints/{TOWER}",
    "mm_projector_type": "conv_reduce",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "image_aspect_ratio": "square",
    "unshared_visual_encoder": True,
}


class TrueBoxes(SharedPrefixSampler):
    """Answers with the true boxes in the form of Griffon, whatever the model would say.

    Args:
        moved: standard deviation of the noise that is added to them, in 0..1.
    """

    def __init__(self, moved: float = 0.0) -> None:
        super().__init__()
        self.moved = moved

    def sample(self, policy, prompts, sampling, tokenizer, draw=0, prefix=None, with_graph=False) -> Rollout:
        """The answers, with their log-probs under the policy."""
        generator, family = np.random.default_rng(draw), Griffon()
        texts = []
        for record, size in zip(prompts.records, prompts.input_sizes, strict=True):
            boxes = family.from_image(record.boxes_xyxy, record.image_size, size)
            noise = generator.normal(0, self.moved, (sampling.group_size, *boxes.shape))
            texts.append([family.write(np.clip(boxes + one, 0, 1), record.labels) for one in noise])
        rows = [[*tokenizer(text, add_special_tokens=False)["input_ids"], 107] for row in texts for text in row]
        longest = max(len(row) for row in rows)
        shape = (len(prompts), sampling.group_size, longest)
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows]).view(shape)
        mask = torch.tensor([[place < len(row) for place in range(longest)] for row in rows]).view(shape)
        with torch.no_grad():
            log_probs, _ = policy.log_probs(prompts, tokens, mask)
        finished, seconds = torch.ones(shape[:2], dtype=torch.bool), {"prefill": 1.0, "decode": 1.0}
        return Rollout(tokens=tokens, mask=mask, finished=finished, log_probs=log_probs, texts=texts, seconds=seconds)


def small_model(sizes: GriffonSizes = SMALL, seed: int = 0):
    """A small model with its processor."""
    tokenizer = build_tokenizer()
    return build_model(tokenizer, sizes, seed), build_processor(tokenizer, sizes)


def released_tensors(model) -> dict[str, torch.Tensor]:
    """The weights under released names: without the output layer, which is tied, and with the second image encoder."""
    tensors = {to_released(name): value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    tensors["model.prompt_visual_encoder.vision_model.embeddings.class_embedding"] = torch.ones(8)
    tensors["model.prompt_projector.0.weight"] = torch.ones(4, 8)
    return {name: value.clone().contiguous() for name, value in tensors.items()}


def write_released(folder: Path, model, processor, **changed) -> Path:
    """Write a model as the released weights are laid out; ``folder`` gets its folder and that of the vision tower.

    Args:
        folder: parent of both.
        model: the model.
        processor: its processor.
        changed: keys of ``config.json`` with other values; None leaves one out.

    Returns:
        The folder of the model.
    """
    main, tower = folder / "Griffon-G-gemma2-9B", folder / TOWER
    main.mkdir(parents=True)
    config = model.config.text_config.to_diff_dict() | RELEASED_KEYS | changed
    # As transformers 4.45 writes it.
    for name in ("layer_types", "rope_parameters", "dtype", "_name_or_path"):
        config.pop(name, None)
    config |= {"rope_theta": 10000.0, "torch_dtype": "float32", "hidden_act": "gelu_pytorch_tanh"}
    (main / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    tensors = released_tensors(model)
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, main / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (main / "model.safetensors.index.json").write_text(json.dumps(index))
    processor.tokenizer.save_pretrained(main)
    model.config.vision_config.save_pretrained(tower)
    side = model.config.vision_config.image_size
    CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side).save_pretrained(tower)
    return main
