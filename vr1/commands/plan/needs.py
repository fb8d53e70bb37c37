"""The settings that memory depends on, read from the arguments of ``vr1 fit``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from inspect import signature
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import StrategyRegistry

from vr1.commands.trainer import settings_of
from vr1.data.datamodule import RecordDataModule
from vr1.losses import GRPO
from vr1.policy.loading import Lora, PolicySource
from vr1.rollout.sampler import Sampler, SharedPrefixSampler
from vr1.strategies import shards_weights
from vr1.strategies.combinations import compute_dtype

_DEFAULT_BATCH_SIZE: int = signature(RecordDataModule).parameters["batch_size"].default
_DEFAULT_EVAL_BATCH_SIZE: int = signature(RecordDataModule).parameters["eval_batch_size"].default


@dataclass(frozen=True, kw_only=True)
class Needs:
    """The settings of a training that decide its memory.

    Args:
        policy: the model, and how it is loaded.
        prompts: prompts in a forward of each process (``data.batch_size``).
        group_size: completions of a prompt.
        completion_tokens: tokens of a completion, at most.
        max_prompt_tokens: tokens of a prompt, at most.
        reference: whether there is a reference (``loss.kl_coef`` above 0).
        optimizer: takes (name, parameter) pairs.
        precision: the trainer's.
        processes: number of processes.
        sharded: whether the model is sharded among them (FSDP); if not, each has a full copy.
        offload: whether shards are stored in host memory.
        categories: categories that a prompt names.
        temperature: of sampling.
        top_p: of sampling.
        sampler: samples the completions.
        eval_prompts: prompts that validation answers together (``data.eval_batch_size``); 0 where there is none.
        eval_tokens: tokens of an answer in validation, at most.
        machines: the processes are spread over so many.
        accumulate: batches of an optimizer step, whose completions are sampled together.
        updates: optimizer steps from each rollout.
        supervised: whether the true answer is one more completion of an update (``model.supervised``).
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
    temperature: float = 1.0
    top_p: float = 1.0
    sampler: Sampler = field(default_factory=SharedPrefixSampler)
    eval_prompts: int = 0
    eval_tokens: int = 1
    machines: int = 1
    accumulate: int = 1
    updates: int = 1
    supervised: bool = False

    @property
    def trained_completions(self) -> int:
        """Completions of a prompt in the forward of an update."""
        return self.group_size + self.supervised

    @property
    def mixed(self) -> bool:
        """Whether weights are stored in higher precision than that of the computation."""
        return self.precision in ("bf16-mixed", "16-mixed")

    @property
    def compute_dtype(self) -> str:
        """The precision of activations, as a name of torch."""
        return compute_dtype(self.precision, self.policy.dtype)


def needs_of(arguments: Sequence[str]) -> Needs:
    """Read the needs of a training from its command line.

    Args:
        arguments: the arguments of ``vr1 fit``.

    Raises:
        UserError: settings that ``vr1 fit`` would refuse.
    """
    settings = settings_of(["fit", *arguments])
    module, data, trainer = settings.model.init_args, settings.data.init_args, settings.trainer
    sampling = module.get("sampling")
    sharded, offload = _strategy(trainer.strategy)
    return Needs(
        policy=_source(module.policy),
        prompts=data.get("batch_size", _DEFAULT_BATCH_SIZE),
        # Supervised fine-tuning has one answer per prompt.
        group_size=sampling.group_size if sampling else 1,
        completion_tokens=sampling.max_new_tokens if sampling else module.evaluation.max_new_tokens,
        max_prompt_tokens=module.max_prompt_tokens,
        reference=sampling is not None and _kl(module.get("loss")) > 0,
        optimizer=_callable(module.optimizer),
        precision=str(trainer.precision or "32-true"),
        processes=_devices(trainer.devices) * trainer.num_nodes,
        sharded=sharded,
        offload=offload,
        temperature=sampling.temperature if sampling else 0.0,
        top_p=sampling.top_p if sampling else 1.0,
        sampler=_sampler(module.get("sampler")),
        eval_prompts=0 if trainer.limit_val_batches == 0 else data.get("eval_batch_size", _DEFAULT_EVAL_BATCH_SIZE),
        eval_tokens=module.evaluation.max_new_tokens,
        machines=trainer.num_nodes,
        accumulate=_most_batches(trainer) if sampling else 1,
        updates=module.get("updates_per_rollout", 1),
        supervised=module.get("supervised") is not None,
    )


def _most_batches(trainer: Any) -> int:
    """Batches of an optimizer step, of the largest if a callback schedules them."""
    counts = [trainer.accumulate_grad_batches or 1]
    for callback in trainer.callbacks or []:
        if callback.class_path.rpartition(".")[2] == GradientAccumulationScheduler.__name__:
            counts += callback.init_args.scheduling.values()
    return max(map(int, counts))


def _devices(given: Any) -> int:
    """How many processes a trainer starts; what it would detect on the machine (``auto``, -1) counts as one."""
    if isinstance(given, list):
        return len(given)
    if str(given).isdigit():
        return max(1, int(given))
    # "0,1" and "0,1," both name two.
    return len([name for name in str(given).split(",") if name.strip()])


def _source(settings: Namespace) -> PolicySource:
    given = settings.as_dict()
    lora = given.pop("lora", None)
    return PolicySource(**given, lora=None if lora is None else Lora(**lora))


def _kl(loss: Namespace | None) -> float:
    if loss is None:
        return GRPO().kl_coef
    return float(loss.init_args.kl_coef)


def _strategy(given: Any) -> tuple[bool, bool]:
    """Whether a strategy shards weights, and whether it stores the shards in host memory."""
    if isinstance(given, Namespace):
        offload = bool(given.get("init_args", Namespace()).get("cpu_offload", False))
        return shards_weights(_imported(given.class_path)), offload
    if str(given) in StrategyRegistry:
        return shards_weights(StrategyRegistry[str(given)]["strategy"]), False
    return False, False


def _sampler(given: Namespace | None) -> Sampler:
    sampler = SharedPrefixSampler() if given is None else _callable(given)()
    assert isinstance(sampler, Sampler), given
    return sampler


def _callable(given: Namespace) -> Any:
    """The class that a setting names, with its settings."""
    return partial(_imported(given.class_path), **given.get("init_args", Namespace()).as_dict())


def _imported(class_path: str) -> Any:
    package, _, name = class_path.rpartition(".")
    return getattr(import_module(package), name)
