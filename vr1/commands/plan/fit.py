"""Whether a plan fits a GPU, and which settings to change first if it does not."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from vr1.commands.plan.needs import Needs
from vr1.errors import UserError
from vr1.policy.loading import Lora

_GIB = 2**30
# Memory in GiB as the driver reports it.
GPUS = {
    "16gb": 15.7,
    "24gb": 23.6,
    "48gb": 47.4,
    "t4": 14.7,
    "l4": 22.0,
    "a10g": 22.1,
    "rtx4090": 23.5,
    "rtx5090": 31.4,
    "l40s": 44.5,
    "a100-40gb": 39.4,
    "a100-80gb": 79.2,
    "h100": 79.1,
    "h200": 139.8,
    "b200": 178.4,
}
# The context of CUDA with its kernels, and memory that the allocator cannot reuse because of fragmentation.
CONTEXT_GIB = 0.8
FRAGMENTATION = 0.05


def capacity(gpu: str) -> float:
    """Bytes that are free on a GPU with nothing but the context of CUDA.

    Args:
        gpu: a name of `GPUS`.

    Raises:
        UserError: an unknown name.
    """
    if gpu not in GPUS:
        raise UserError(
            f"--gpu {gpu} is not known; give one of {', '.join(GPUS)}: the one with as much memory as yours"
        )
    return (GPUS[gpu] - CONTEXT_GIB) * _GIB


def usable(gpu: str) -> float:
    """Bytes that tensors can use on a GPU.

    Args:
        gpu: a name of `GPUS`.

    Raises:
        UserError: an unknown name.

    Example:
        >>> round(usable("a100-40gb") / 2**30, 1)
        36.7
    """
    return capacity(gpu) * (1 - FRAGMENTATION)


def without_four_bits(needs: Needs) -> Needs:
    """The same training with the base weights in bfloat16 instead of 4 bits."""
    return replace(needs, policy=replace(needs.policy, quantize=None, dtype="bfloat16", rollout_weights="auto"))


# Changes that do not affect the result come first, those that change the training last.
_Change = Callable[[Needs], tuple[str, Needs] | None]


def changes(needs: Needs) -> Iterator[tuple[str, Needs]]:
    """Settings that need less memory, each added to those before it.

    Args:
        needs: what does not fit.

    Returns:
        All changes so far as arguments of the command line, and the needs with them.

    Example:
        >>> import torch
        >>> from vr1.policy.loading import PolicySource
        >>> needs = Needs(policy=PolicySource(), prompts=2, group_size=8, completion_tokens=64, max_prompt_tokens=512,
        ...     reference=True, optimizer=torch.optim.AdamW)
        >>> [arguments for arguments, _ in changes(needs)][:2]
        ['--model.policy.gradient_checkpointing true', '--model.policy.gradient_checkpointing true --data.batch_size 1']
    """
    arguments: list[str] = []
    for change in (
        _recompute,
        _fewer_answers,
        _fewer_prompts,
        _adapters,
        _four_bits,
        _smaller_images,
        _fewer_completions,
    ):
        while (changed := change(needs)) is not None:
            argument, needs = changed
            setting = argument.split()[0]
            arguments = [*(earlier for earlier in arguments if earlier.split()[0] != setting), argument]
            yield " ".join(arguments), needs


def _recompute(needs: Needs) -> tuple[str, Needs] | None:
    if needs.policy.gradient_checkpointing:
        return None
    policy = replace(needs.policy, gradient_checkpointing=True)
    return "--model.policy.gradient_checkpointing true", replace(needs, policy=policy)


def _fewer_prompts(needs: Needs) -> tuple[str, Needs] | None:
    if needs.prompts == 1:
        return None
    half = needs.prompts // 2
    return f"--data.batch_size {half}", replace(needs, prompts=half)


def _fewer_answers(needs: Needs) -> tuple[str, Needs] | None:
    # More answers at once than completions in a rollout are not needed where memory is short.
    half = needs.eval_prompts // 2
    if half < 1 or needs.eval_prompts <= needs.prompts:
        return None
    return f"--data.eval_batch_size {half}", replace(needs, eval_prompts=half)


def _adapters(needs: Needs) -> tuple[str, Needs] | None:
    if needs.policy.lora is not None:
        return None
    return "--model.policy.lora.rank 16", replace(needs, policy=replace(needs.policy, lora=Lora(rank=16)))


def _four_bits(needs: Needs) -> tuple[str, Needs] | None:
    if needs.policy.quantize or needs.sharded:
        return None
    return "--model.policy.quantize nf4", replace(needs, policy=replace(needs.policy, quantize="nf4"))


def _smaller_images(needs: Needs) -> tuple[str, Needs] | None:
    pixels = (needs.policy.max_pixels or 1_605_632) // 2
    if pixels < 200_000:
        return None
    return f"--model.policy.max_pixels {pixels}", replace(needs, policy=replace(needs.policy, max_pixels=pixels))


def _fewer_completions(needs: Needs) -> tuple[str, Needs] | None:
    half = needs.group_size // 2
    return (f"--model.sampling.group_size {half}", replace(needs, group_size=half)) if half >= 4 else None
