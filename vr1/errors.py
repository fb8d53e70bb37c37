"""Errors that a user can fix, and the messages that say how."""

import re
import sys

_IN_WORKER = re.compile(r"\ACaught \w+ in (?:DataLoader worker process|pin memory thread)")
_FILE = re.compile(r'^  File "(?P<name>.+?)", line \d+', re.MULTILINE)
_RAISED = re.compile(r"^[\w.]+: ", re.MULTILINE)
# A class that was named, with the lines below it that are indented further; looked at only, since they may nest.
_PROBLEM = re.compile(
    r"^(?P<indent> *)- Problem with given class_path '(?P<name>.+?)':$(?=(?P<said>(?:\n(?P=indent) {2,}\S.*)+))",
    re.MULTILINE,
)
_KEY = re.compile(r'Parser key "(.+?)":')


class UserError(ValueError):
    """A mistake that the user can fix: a command prints its message in one line, without a traceback.

    The message says what is wrong, where (file, record or setting), and how to fix it.
    """


def user_message(error: BaseException) -> str | None:
    """The message for the user where an error is one that the user can fix; None where only a traceback helps.

    The user can fix a `UserError`, and what the operating system refuses about a named file (missing, write-protected,
    disk full); either may be the cause of the error at hand.

    Example:
        >>> user_message(UserError("data.root=x: no such folder"))
        'data.root=x: no such folder'
        >>> user_message(ValueError("zip() argument 2 is shorter than argument 1")) is None
        True
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, UserError):
            return _without_worker_traceback(str(cause))
        if isinstance(cause, OSError) and cause.filename is not None:
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return None


def report_user_error(program: str, error: Exception) -> int:
    """Print an error that the user can fix in one line; any other error is raised again, with its traceback.

    Args:
        program: the command, as the line begins with it.
        error: the error at hand.

    Returns:
        The exit status, 2.

    Example:
        >>> import contextlib, sys
        >>> with contextlib.redirect_stderr(sys.stdout):
        ...     report_user_error("vr1 score", UserError("--stage expert: give beginner, advanced or off"))
        vr1 score: error: --stage expert: give beginner, advanced or off
        2
    """
    message = user_message(error)
    if message is None:
        raise error
    print(f"{program}: error: {message}", file=sys.stderr)
    return 2


def innermost(message: str) -> str:
    """The heart of a parser's message, in one line: the setting and what is wrong with it, without the dump around.

    Example:
        >>> print(innermost('''Parser key "model":
        ...   Errors:
        ...     - Problem with given class_path 'my.Model':
        ...         Parser key "loss":
        ...           Errors:
        ...             - Problem with given class_path 'my.Loss':
        ...                 Option 'kl_coeff' is not accepted
        ...             - Expected a <class 'NoneType'>
        ...   Given value: {'class_path': 'my.Model'}'''))
        model.loss (my.Loss): Option 'kl_coeff' is not accepted
    """
    problems = sorted(_PROBLEM.finditer(message), key=lambda found: len(found["indent"]))
    if not problems:
        return " ".join(message.split())
    deepest = problems[-1]
    keys = ".".join(_KEY.findall(message[: deepest.end()] + deepest["said"]))
    return f"{keys} ({deepest['name']}): {' '.join(_KEY.sub('', deepest['said']).split())}"


def _without_worker_traceback(text: str) -> str:
    """The message alone, where torch passes on an error of a data loader's process as its traceback in text."""
    if not _IN_WORKER.match(text):
        return text
    *_, last = _FILE.finditer(text)
    raised = _RAISED.search(text, last.end())
    return text[raised.end() :].strip() if raised else text


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
    # Here, so that commands without a trainer do not wait for torch.
    import torch

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
