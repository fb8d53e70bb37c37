"""The table of names between released weights of Griffon-G and those of vr1.

Released checkpoints nest the vision tower in a wrapper and put the language model's layers directly below ``model``;
vr1's follow the layout of transformers' vision-language models.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from safetensors import safe_open

from vr1.errors import UserError

# Beginning of a released name, and of the same tensor's name here.
NAMES = (
    ("model.vision_tower.vision_tower.vision_model.", "model.vision_tower."),
    ("model.mm_projector.", "model.multi_modal_projector."),
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
    ("model.layers.", "model.language_model.layers."),
    ("model.norm.", "model.language_model.norm."),
    ("lm_head.", "lm_head."),
)
# The second image encoder of the released code, for referring by an image ("<region>"): detection does not call it.
REGION_NAMES = ("model.prompt_visual_encoder.", "model.prompt_projector.")
# Index buffers, which transformers makes itself.
INDEX_NAMES = ("model.vision_tower.vision_tower.vision_model.embeddings.position_ids",)

# The same table for transformers' ``key_mapping``; names of vr1 match none of its patterns.
KEY_MAPPING = {f"^{re.escape(theirs)}": ours for theirs, ours in NAMES if theirs != ours}
# Patterns of tensors that are left out.
LEFT_OUT = [f"^{re.escape(name)}" for name in (*REGION_NAMES, *INDEX_NAMES)]


def to_ours(name: str) -> str:
    """The name of a released tensor here.

    Raises:
        UserError: the table has no such name.

    Example:
        >>> to_ours("model.mm_projector.conv.weight")
        'model.multi_modal_projector.conv.weight'
    """
    return _renamed(name, NAMES)


def to_released(name: str) -> str:
    """The released name of a tensor.

    Raises:
        UserError: the table has no such name.

    Example:
        >>> to_released("model.language_model.layers.0.mlp.up_proj.weight")
        'model.layers.0.mlp.up_proj.weight'
    """
    return _renamed(name, [(ours, theirs) for theirs, ours in NAMES])


def _renamed(name: str, table: Iterable[tuple[str, str]]) -> str:
    for before, after in table:
        if name.startswith(before):
            return after + name.removeprefix(before)
    raise UserError(f"{name} is no tensor of Griffon-G; the table of names is vr1.griffon.released.NAMES")


def is_left_out(name: str) -> bool:
    """Whether a released tensor is not loaded: a part of the second image encoder, or an index buffer.

    Example:
        >>> is_left_out("model.prompt_projector.0.weight")
        True
    """
    return name.startswith((*REGION_NAMES, *INDEX_NAMES))


def region_names(folder: Path) -> dict[str, Path]:
    """The tensors of the second image encoder in a folder of released weights, and the file of each.

    Args:
        folder: a folder with safetensors files; one without any has no such tensors.
    """
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            found |= dict.fromkeys([name for name in list(tensors.keys()) if name.startswith(REGION_NAMES)], file)
    return found


def check_names(folder: str, missing: Iterable[str], unexpected: Iterable[str], other_sizes: Iterable[str]) -> None:
    """Check that every tensor of a checkpoint belongs to the model and the reverse.

    Args:
        folder: the checkpoint.
        missing: names of tensors of the model that the checkpoint lacks.
        unexpected: names of tensors of the checkpoint that the model lacks.
        other_sizes: names and sizes of tensors whose sizes differ.

    Raises:
        UserError: there are some; the message lists them.
    """
    lists = [
        f"{len(names)} {kind} ({', '.join(names)})"
        for kind, names in (
            ("missing", sorted(missing)),
            ("left over", sorted(unexpected)),
            ("of another size", sorted(other_sizes)),
        )
        if names
    ]
    if lists:
        raise UserError(
            f"{folder}: its tensors are not those of Griffon-G: {'; '.join(lists)}; give a complete folder of"
            " Griffon-G, or check the sizes in its config.json"
        )
