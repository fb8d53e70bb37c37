"""The settings that memory depends on, read from the arguments of ``vr1 fit``."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from jsonargparse import Namespace

from vr1.commands.trainer import settings_of
from vr1.losses import GRPO
from vr1.policy.loading import Lora, PolicySource

# As Lightning names precisions: what is computed with, and whether weights are kept wider than that.
_HALF = {"bf16": "bfloat16", "16": "float16"}


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a training asks for.

    Args:
        policy: the model, and how it is loaded.
        prompts: prompts in a forward, on each process (``data.batch_size``).
        group_size: completions of a prompt.
        completion_tokens: tokens of a completion, the limit at worst.
        max_prompt_tokens: longest prompt that is accepted.
        reference: whether a reference is kept (``loss.kl_coef`` above 0).
        optimizer: takes (name, parameter) pairs.
        precision: the trainer's.
        processes: processes that work together.
        sharded: whether they divide the model among them (FSDP); if not, each has all of it.
        offload: whether shards lie in the host's memory.
        categories: categories that a prompt names.
    """

    policy: PolicySource
    prompts: int
    group_size: int
    completion_tokens: int
    max_prompt_tokens: int
    reference: bool
    optimizer: Any
    precision: str = "32-true"
    processes: int = 1
    sharded: bool = False
    offload: bool = False
    categories: int = 10

    @property
    def mixed(self) -> bool:
        """Whether weights are wider than what is computed with."""
        return self.precision.endswith("-mixed") and self.precision.split("-")[0] in _HALF

    @property
    def compute_dtype(self) -> str:
        """The precision of activations, a name of torch's."""
        kind, _, way = self.precision.partition("-")
        return _HALF[kind] if way in ("mixed", "true") and kind in _HALF else self.policy.dtype


def needs_of(words: Sequence[str]) -> Needs:
    """What a training would ask for.

    Args:
        words: those that ``vr1 fit`` would be given.

    Raises:
        UserError: settings that no training could be made of.
    """
    settings = settings_of(["fit", *words])
    module, data, trainer = settings.model.init_args, settings.data.init_args, settings.trainer
    sampling = module.get("sampling")
    strategy, offload = _strategy(trainer.strategy)
    return Needs(
        policy=_source(module.policy),
        prompts=data.get("batch_size", 16),
        # Supervised fine-tuning has one answer a prompt.
        group_size=sampling.group_size if sampling else 1,
        completion_tokens=sampling.max_new_tokens if sampling else module.evaluation.max_new_tokens,
        max_prompt_tokens=module.max_prompt_tokens,
        reference=sampling is not None and _kl(module.get("loss")) > 0,
        optimizer=_callable(module.optimizer),
        precision=str(trainer.precision or "32-true"),
        processes=_devices(trainer.devices) * trainer.num_nodes,
        sharded=strategy.endswith(("FullySharded", "fully_sharded")),
        offload=offload,
    )


def _devices(given: Any) -> int:
    """How many processes a trainer starts; what it finds out on the machine counts as one."""
    if isinstance(given, list):
        return len(given)
    if str(given).isdigit():
        return max(1, int(given))
    # "0,1" names two, and so does "0,1,".
    return len([name for name in str(given).split(",") if name.strip()])


def _source(settings: Namespace) -> PolicySource:
    given = settings.as_dict()
    lora = given.pop("lora", None)
    return PolicySource(**given, lora=None if lora is None else Lora(**lora))


def _kl(loss: Namespace | None) -> float:
    if loss is None:
        return GRPO().kl_coef
    return float(loss.init_args.kl_coef)


def _strategy(given: Any) -> tuple[str, bool]:
    if isinstance(given, Namespace):
        return given.class_path, bool(given.get("init_args", Namespace()).get("cpu_offload", False))
    return str(given), False


def _callable(given: Namespace) -> Any:
    """The optimizer that a setting names, still without parameters."""
    package, _, name = given.class_path.rpartition(".")
    return partial(getattr(import_module(package), name), **given.get("init_args", Namespace()).as_dict())
