"""Which setting to lower where memory ran out."""

import torch

_ADVICE = {
    "rollout": (
        "while completions were sampled: lower model.sampling.group_size or data.batch_size (with"
        " trainer.accumulate_grad_batches raised as much, a step sees as many prompts), then"
        " model.sampling.max_new_tokens or model.policy.max_pixels"
    ),
    "reference": (
        "in the reference's forward: lower data.batch_size (with trainer.accumulate_grad_batches raised as much) or"
        " model.policy.max_pixels; with adapters (model.policy.lora.rank 16) or model.loss.kl_coef 0 no copy of the"
        " model is held for it"
    ),
    "policy": (
        "in the policy's forward, backward or update: set model.policy.gradient_checkpointing true, then lower"
        " data.batch_size (with trainer.accumulate_grad_batches raised as much), model.sampling.group_size or"
        " model.policy.max_pixels; adapters (model.policy.lora.rank 16), and 4-bit weights with them"
        " (model.policy.quantize nf4), take least"
    ),
    "evaluation": "in evaluation: lower data.eval_batch_size, then model.evaluation.max_new_tokens",
}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(ValueError("out of patience"))
        (True, False)
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    texts = ("can't allocate memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


def memory_advice(part: str) -> str:
    """One sentence on what to change, most useful first.

    Args:
        part: ``rollout``, ``reference``, ``policy`` or ``evaluation``.

    Example:
        >>> memory_advice("evaluation")
        'memory ran out in evaluation: lower data.eval_batch_size, then model.evaluation.max_new_tokens'
    """
    return f"memory ran out {_ADVICE.get(part, _ADVICE['policy'])}"
