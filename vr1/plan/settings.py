"""The words of ``vr1 fit`` -> what the plan needs to know; nothing is made but the optimizer's class."""

from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any

from jsonargparse import Namespace

from vr1.losses import GRPO
from vr1.plan.needs import Needs
from vr1.policy.loading import Lora, PolicySource
from vr1.trainer_commands import settings_of


def needs_of(words: Sequence[str]) -> Needs:
    """What a training would ask for.

    Args:
        words: those that ``vr1 fit`` would be given.

    Raises:
        ValueError: settings that no training could be made of.
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
