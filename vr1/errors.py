"""Errors that a user can fix, and the messages that say how."""

import difflib
import inspect
import re
import sys

_IN_WORKER = re.compile(r"\ACaught \w+ in (?:DataLoader worker process|pin memory thread)")
_FILE = re.compile(r'^  File "(?P<name>.+?)", line \d+', re.MULTILINE)
_RAISED = re.compile(r"^[\w.]+: ", re.MULTILINE)
# A class that was named, with the lines below it that are indented further; a lookahead, since they may nest.
_PROBLEM = re.compile(
    r"^(?P<indent> *)- Problem with given class_path '(?P<name>.+?)':$(?=(?P<detail>(?:\n(?P=indent) {2,}\S.*)+))",
    re.MULTILINE,
)
_KEY = re.compile(r'Parser key "(.+?)":')
_VALUE = re.compile(r"^ *Given value: ([^{\[\n]\S*)(?:\. Got value: .*)?$", re.MULTILINE)
_TYPE = re.compile(r"Expected an? <class '(\w+)'>")
_NO_SUBCLASS = re.compile(r"Import path (\S+) does not correspond to a subclass of (\w+)")
_NO_ATTRIBUTE = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_SUBTYPE = re.compile(r"<class '([\w.]+\.\w+)'>")


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
    """The core of a parser's message, in one line: the setting and what is wrong with it, without the dump around it.

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
        >>> print(innermost('''Parser key "reward":
        ...   Errors:
        ...     - Problem with given class_path 'mine.yaml':
        ...         No module named 'mine'
        ...   Given value: mine.yaml'''))
        reward (mine.yaml): no such file; check the path
        >>> print(innermost('''Parser key "lr":
        ...   Subtypes: [<class 'float'>, <class 'NoneType'>]
        ...   Errors:
        ...     - Expected a <class 'float'>
        ...     - Expected a <class 'NoneType'>
        ...   Given value: abc'''))
        lr: expected float, got 'abc'
        >>> print(innermost('''Parser key "limit":
        ...   Errors:
        ...     - Problem with given class_path 're.Patern':
        ...         module 're' has no attribute 'Patern'
        ...   Given value: re.Patern'''))
        limit (re.Patern): module 're' has no attribute 'Patern'; did you mean re.Pattern?
    """
    message = "\n".join(line for line in message.splitlines() if line.strip())
    problems = sorted(_PROBLEM.finditer(message), key=lambda match: len(match["indent"]))
    if not problems:
        keys, detail, kind = ".".join(_KEY.findall(message)), message, ""
    else:
        deepest = problems[-1]
        detail = deepest["detail"]
        keys, kind = ".".join(_KEY.findall(message[: deepest.end()] + detail)), f" ({deepest['name']})"
    if (value := _VALUE.search(detail)) is not None and (expected := _expected(detail, value[1])):
        return f"{keys}: {expected}"
    if (other := _NO_SUBCLASS.search(detail)) is not None:
        return f"{keys}: {_other_kind(detail, *other.groups())}"
    detail = " ".join(_KEY.sub("", detail).split()) + _similar_name(detail)
    # What is no file is taken for the name of a class.
    if detail.startswith("No module named") and kind.endswith((".yaml)", ".yml)", ".json)")):
        detail = "no such file; check the path"
    return f"{keys}{kind}: {detail}" if keys else detail


def _expected(detail: str, value: str) -> str:
    """What a setting takes, where a parser's message says only that a value fits none of its types."""
    if value.endswith((".yaml", ".yml", ".json")):
        return f"no such file: {value} (in a configuration, paths of further configurations are relative to its folder)"
    plain = [name for name in _TYPE.findall(detail) if name != "NoneType"]
    if plain:
        return f"expected {' or '.join(dict.fromkeys(plain))}, got {value!r}"
    names = sorted({name for path in _SUBTYPE.findall(detail) for name in _subclasses(path)})
    return f"no class {value!r}; known are {', '.join(names)}" if names else ""


def _other_kind(detail: str, given: str, kind: str) -> str:
    """What a setting takes, where a class of another kind was given."""
    base = re.search(rf"[\w.]+\.{kind}\b", detail)
    known = ", ".join(sorted(_subclasses(base[0]))) if base else ""
    return f"{given} is no {kind}" + (f"; known are {known}" if known else "")


def _similar_name(detail: str) -> str:
    """The names of a module that are like a misspelled one."""
    missing = _NO_ATTRIBUTE.search(detail)
    if missing is None or missing[1] not in sys.modules:
        return ""
    module, name = missing.groups()
    classes = [key for key, value in inspect.getmembers(sys.modules[module]) if inspect.isclass(value)]
    similar = difflib.get_close_matches(name, classes, cutoff=0.5)
    return f"; did you mean {' or '.join(f'{module}.{key}' for key in similar)}?" if similar else ""


def _subclasses(path: str) -> list[str]:
    """The names of the concrete subclasses of vr1 of an imported class."""
    module, _, name = path.rpartition(".")
    kinds = [getattr(sys.modules.get(module), name, None)]
    names = []
    for kind in kinds:
        if isinstance(kind, type):
            kinds += kind.__subclasses__()
            if kind.__module__.startswith(("vr1.", "callbacks.")) and not inspect.isabstract(kind):
                names.append(kind.__name__)
    return names


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
        " trainer.accumulate_grad_batches raised as much, a step sees as many prompts), or set max_rows of"
        " model.sampler (vr1.rollout.SharedPrefixSampler), then lower model.sampling.max_new_tokens or"
        " model.policy.max_pixels"
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
