"""FSDP2: weights, gradients, optimizer states and the frozen reference sharded among the processes.

**Rollouts.** A forward of a sharded model is a sequence of all-gathers in which every process takes part, but
completions end at different times on each process. There are two solutions. Either every process keeps decoding until
the last one is done, and gathers all weights again for every token. Or all weights are gathered once, before the
rollout, and each process decodes by itself. For a 7B in bfloat16 on eight A100 the first moves 15 GB a token, about
60 ms over NVLink where the token itself takes 10, and many times that between machines. The second moves 15 GB once a
rollout, and holds them while there are no activations. `FullySharded.gathered_weights` does the second. It requires
that a GPU can hold the weights alone, once, in the precision of the forward: up to about 30B parameters on 80 GB.

**Forwards for the loss** stay sharded: each process makes one forward a batch, whatever the lengths, so that all of
them gather in the same order. Processes wait for the one that samples longest there, and nowhere else.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only
from typing_extensions import override

from vr1.checkpoints.files import read_checkpoint
from vr1.checkpoints.shards import read_shards, write_shards
from vr1.policy.policy import Policy


@runtime_checkable
class HasPolicies(Protocol):
    """What `FullySharded` requires of a LightningModule, once ``configure_model`` has run.

    Attributes:
        policy: the policy that is trained.
    """

    policy: Policy

    def policies(self) -> Sequence[Policy]:
        """All policies with weights of their own, ``policy`` among them: these are sharded."""
        ...


class FullySharded(ModelParallelStrategy):
    """Divide the policy and its reference among all processes by ``fully_shard``, block by block.

    With ``trainer.precision bf16-mixed`` the shards stay in the precision of ``policy.dtype`` (float32 keeps optimizer
    steps exact), and weights are gathered and computed with in bfloat16; gradients are summed in float32. Activations
    are recomputed by ``policy.gradient_checkpointing``. Works on CPUs too (gloo). Started by Lightning itself, by
    torchrun or by srun, on one machine or several.

    Args:
        cpu_offload: keep the shards, and with them gradients and optimizer states, in the host's memory.
        sharded_checkpoints: write a folder in which each process puts its own shards, rather than one file that the
            first process puts together. Faster, and without a whole model in one host's memory; both kinds resume on
            any number of processes of this strategy, one file also without it, and ``vr1 export`` reads both.

    Note:
        Each process reads the whole model into the host's memory before it keeps its share, one after another.

    Raises:
        UserError: what is trained with it cannot be divided (`vr1.strategies.combinations`).

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(strategy=FullySharded(), accelerator="cpu", devices=2, logger=False)
    """

    def __init__(self, cpu_offload: bool = False, sharded_checkpoints: bool = False) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=sharded_checkpoints)
        self._cpu_offload = cpu_offload
        self._gathered = False

    @override
    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        if self._cpu_offload and self.root_device.type == "cuda":
            # Norms of offloaded gradients are summed on the host.
            self._process_group_backend = "cpu:gloo,cuda:nccl"
        super().setup_environment()

    @override
    def setup(self, trainer: "pl.Trainer") -> None:
        for policy in self._module.policies():
            self._shard(policy)
            # One forward a batch on every process, whatever the lengths of its rows.
            policy.set_max_length_ratio(math.inf)
        for loop in (trainer.validate_loop, trainer.test_loop, trainer.predict_loop):
            # Weights gathered in inference mode could not be trained later.
            loop.inference_mode = False
        super().setup(trainer)

    def _shard(self, policy: Any) -> None:
        """Divide the blocks of a policy, each gathered for itself, and what lies around them as one more."""
        mixed = self.precision_plugin.precision == "bf16-mixed"
        # Inputs are left as they are: rotary angles in bfloat16 would be too coarse, and autocast does the rest.
        precision = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if mixed else None,
            reduce_dtype=torch.float32 if mixed else None,
            cast_forward_inputs=False,
        )
        offload = CPUOffloadPolicy(pin_memory=self.root_device.type == "cuda") if self._cpu_offload else OffloadPolicy()
        settings: dict[str, Any] = {
            "mesh": self.device_mesh["data_parallel"],
            "mp_policy": precision,
            "offload_policy": offload,
        }
        blocks = set(policy.base._no_split_modules or ())
        for part in policy.base.modules():
            if type(part).__name__ in blocks:
                fully_shard(part, **settings)
        fully_shard(policy, **settings)
        policy.set_reshard_after_forward(True)
        register_fsdp_forward_method(policy, "log_probs")

    @property
    def _module(self) -> "HasPolicies":
        module = self.lightning_module
        assert isinstance(module, HasPolicies), f"{type(module).__name__} has no policies to shard"
        return module

    @contextmanager
    def gathered_weights(self) -> Iterator[None]:
        """All weights of the policy on every process; forwards within exchange nothing, however many they are."""
        if self._gathered:
            yield
            return
        policy: Any = self._module.policy
        parts = [part for part in policy.modules() if isinstance(part, FSDPModule)]
        # FSDP finds its root at the first forward, which must not be that of a block.
        policy._get_fsdp_state()._lazy_init()
        policy.set_reshard_after_forward(False)
        for part in parts:
            part.unshard()
        self._gathered = True
        try:
            yield
        finally:
            self._gathered = False
            policy.set_reshard_after_forward(True)
            for part in parts:
                part.reshard()

    @override
    def model_to_device(self) -> None:
        if not self._cpu_offload:
            super().model_to_device()
            return
        # Offloaded shards stay on the host: everything else moves.
        assert self.lightning_module is not None
        policy = self.lightning_module._modules.pop("policy")
        self.lightning_module.to(self.root_device)
        self.lightning_module._modules["policy"] = policy

    @property
    @override
    def lightning_restore_optimizer(self) -> bool:
        return True

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state as torch writes it: whole and on rank 0 alone, or this process's shards where those are saved."""
        optimizer = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state = optimizer.state_dict()
        if self._save_distributed_checkpoint:
            return state
        whole: dict[str, Any] = tree_map_only(DTensor, lambda shard: shard.full_tensor().cpu(), state)
        return whole if self.is_global_zero else {}

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: _PATH, storage_options: Any = None) -> None:
        if self._save_distributed_checkpoint:
            write_shards(checkpoint, Path(self.broadcast(filepath)))
        else:
            super().save_checkpoint(checkpoint, filepath, storage_options)

    @override
    def load_checkpoint(self, checkpoint_path: _PATH, weights_only: bool | None = None) -> dict[str, Any]:
        # Without Lightning's way, which loads weights before anything could check whether they belong here.
        path = Path(self.broadcast(checkpoint_path))
        if path.is_dir():
            return read_shards(path, self._laid_out())
        # Every process takes its share of each tensor: together they need the file in memory once at most.
        return read_checkpoint(path, mmap=True)

    def _laid_out(self) -> dict[str, torch.Tensor]:
        """The parameters, which know their shards, by the keys of weights and optimizer states in a checkpoint."""
        assert self.lightning_module is not None
        keys: dict[str, torch.Tensor] = {}
        keys |= {f"state_dict.{name}": parameter for name, parameter in self.lightning_module.named_parameters()}
        for place, optimizer in enumerate(self.optimizers):
            parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
            keys |= {f"optimizer_states.{place}.{number}": parameter for number, parameter in enumerate(parameters)}
        return keys

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        state = dict(checkpoint["state_dict"])
        # Every process has read the file for itself and takes its share of each tensor.
        full = not any(isinstance(value, DTensor) for value in state.values())
        options = StateDictOptions(full_state_dict=full, strict=strict)
        set_model_state_dict(self.lightning_module, state, options=options)

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(_divided(state, optimizer))


def _divided(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """The state of an optimizer with this process's share of each tensor that is as large as its parameter."""

    def share(value: Any, parameter: torch.Tensor) -> Any:
        if isinstance(value, DTensor) or not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
            return value
        assert isinstance(parameter, DTensor)
        # Without a source rank nothing is sent: each process has the whole tensor.
        return distribute_tensor(
            value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
        )

    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    by_number = dict(zip(numbers, parameters, strict=True))
    states = {
        number: {name: share(value, by_number[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": states}
