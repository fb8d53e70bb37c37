"""FSDP2: weights, gradients, optimizer states and the frozen reference sharded among the processes.

**Rollouts.** A forward of a sharded model is a sequence of all-gathers in which every process takes part, but
completions end at different times on each process. There are two solutions. Either every process keeps decoding until
the last one is done, and gathers all weights again for every token. Or all weights are gathered once, before the
rollout, and each process decodes by itself. For a 7B in bfloat16 on eight A100 the first moves 15 GB a token, about
60 ms over NVLink where the token itself takes 10, and many times that between machines. The second moves 15 GB once a
rollout, and holds them while there are no activations. `FullySharded.gathered_weights` does the second. It requires
that a GPU can hold the weights alone, once, in the precision of the forward: up to about 30B parameters on 80 GB.
Validation gathers once for all its batches.

**Loading.** The module makes its policies without weights (`vr1.policy.mapped`); they are sharded so, and then each
process takes its part of each weight from the mapped files, for the policy and for its reference. Beside the shards, a
process needs memory for its part of one weight. Weights that the two have in common, which are not trained, have shards
in common too.

**Forwards for the loss** stay sharded: each process makes one forward a batch, whatever the lengths, so that all of
them gather in the same order. Processes wait for the one that samples longest there, and nowhere else.

Private parts of Lightning that this file relies on, tried with 2.6: ``_data_parallel_size`` of `ModelParallelStrategy`,
whose constructor takes it before the number of processes is known.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as pl
import torch
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
from typing_extensions import override

from vr1.checkpoints.files import StrPath, read_checkpoint
from vr1.checkpoints.shards import read_shards, write_shards
from vr1.policy.policy import Policy
from vr1.strategies.loading import load_shards


@runtime_checkable
class HasPolicies(Protocol):
    """What `FullySharded` requires of a LightningModule, once ``configure_model`` has run.

    The policy that is trained is its part ``policy``. Only the method is checked: from Python 3.12 on, a check against
    a protocol does not see the parts of a module.
    """

    def policies(self) -> Sequence[Policy]:
        """All policies with weights of their own, that which is trained first: these are sharded."""
        ...

    def take_weights(self) -> Mapping[str, torch.Tensor]:
        """The weights of policies that have been made without (device "meta"), by name; empty if they have weights.

        The module gives them away, so that their memory is free after this process has taken its part of each.
        """
        ...


class FullySharded(ModelParallelStrategy):
    """Shard the policy and its reference among all processes with ``fully_shard``, block by block.

    With ``trainer.precision bf16-mixed`` the shards stay in ``policy.dtype`` (float32 for exact optimizer steps), and
    weights are gathered and used in bfloat16; gradients are summed in float32. ``policy.gradient_checkpointing``
    recomputes activations. Works on CPUs too (gloo), started by Lightning itself, torchrun or srun, on one machine or
    several. `vr1.strategies.combinations` lists what cannot be combined with it.

    Args:
        cpu_offload: store the shards, with their gradients and optimizer states, in host memory.
        sharded_checkpoints: write a folder with the shards of each process instead of one file that the first process
            gathers. This is faster and needs no full model in one host's memory. Both kinds resume on any number of
            processes of this strategy, a file also without it, and ``vr1 export`` reads both.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(strategy=FullySharded(), accelerator="cpu", devices=2, logger=False)
    """

    def __init__(self, cpu_offload: bool = False, sharded_checkpoints: bool = False) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=sharded_checkpoints,
            # Norms of offloaded gradients are summed on the host.
            process_group_backend="cpu:gloo,cuda:nccl" if cpu_offload and torch.cuda.is_available() else None,
        )
        self._cpu_offload, self._sharded_checkpoints = cpu_offload, sharded_checkpoints
        self._gathered = False

    @override
    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @override
    def setup(self, trainer: "pl.Trainer") -> None:
        weights = self._module.take_weights()
        policies = self._module.policies()
        # As they are before they are sharded, which gives each policy parameters of its own.
        parameters = [dict(policy.named_parameters(remove_duplicate=False)) for policy in policies]
        for policy, own in zip(policies, parameters, strict=True):
            if isinstance(policy, FSDPModule):
                # By an earlier run of this trainer.
                continue
            self._shard(policy)
            if weights:
                first = policies[0]
                common = {
                    name: first.get_parameter(name)
                    for name, parameter in own.items()
                    if policy is not first and parameter is parameters[0].get(name)
                }
                load_shards(policy, weights, torch.device("cpu") if self._cpu_offload else self.root_device, common)
            # One forward a batch on every process, whatever the lengths of its prompts.
            policy.set_max_length_ratio(math.inf)
        for loop in (trainer.validate_loop, trainer.test_loop, trainer.predict_loop):
            # Weights that are gathered in inference mode cannot be trained later.
            loop.inference_mode = False
        super().setup(trainer)

    def _shard(self, policy: Any) -> None:
        """Shard each block of a policy as a unit that is gathered by itself, and all other weights as one more unit."""
        mixed = self.precision_plugin.precision == "bf16-mixed"
        # Inputs are not cast: rotary angles in bfloat16 are too coarse, and autocast casts where it should.
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
        for block in policy.blocks:
            fully_shard(block, **settings)
        fully_shard(policy, **settings)
        policy.set_reshard_after_forward(True)
        register_fsdp_forward_method(policy, "log_probs")
        register_fsdp_forward_method(policy, "with_image_features")
        register_fsdp_forward_method(policy, "no_op")

    @property
    def _module(self) -> "HasPolicies":
        module = self.lightning_module
        assert isinstance(module, HasPolicies), f"{type(module).__name__} has no policies to shard"
        return module

    @contextmanager
    def gathered_weights(self) -> Iterator[None]:
        """A context in which every process has all weights of the policy, so that forwards exchange nothing.

        It needs memory for all weights in the precision of the forward on each process. A context within another
        gathers nothing again. Validation keeps one open from its first batch to its last, since weights do not change
        meanwhile; a checkpoint that is saved within it would end it early.
        """
        if self._gathered:
            yield
            return
        policy: Any = self._module.policies()[0]
        policy.set_reshard_after_forward(False)
        # The first forward that FSDP sees must be of the root module, not of a block. With an argument: on a GPU, torch
        # 2.11 moves all arguments there, and fails without any.
        policy.no_op(None)
        for part in _sharded_parts(policy):
            part.unshard()
        self._gathered = True
        try:
            yield
        finally:
            self._free_gathered()

    def _free_gathered(self) -> None:
        policy: Any = self._module.policies()[0]
        self._gathered = False
        policy.set_reshard_after_forward(True)
        for part in _sharded_parts(policy):
            part.reshard()

    @override
    def on_exception(self, exception: BaseException) -> None:
        # An evaluation that is interrupted does not reach its end.
        if self._gathered:
            self._free_gathered()

    @override
    def model_to_device(self) -> None:
        if not self._cpu_offload:
            super().model_to_device()
            return
        # Offloaded shards stay on the host; everything else moves. The policy is no submodule for the moment of `to`.
        module: Any = self._module
        policy = module.policy
        del module.policy
        module.to(self.root_device)
        module.policy = policy

    @property
    @override
    def lightning_restore_optimizer(self) -> bool:
        return True

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's ``state_dict``: gathered, on rank 0 only; or this process's shards if these are saved."""
        optimizer = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state = optimizer.state_dict()
        if self._sharded_checkpoints:
            return state
        gathered = {
            number: {
                name: value.full_tensor().cpu() if isinstance(value, DTensor) else value
                for name, value in values.items()
            }
            for number, values in state["state"].items()
        }
        return {**state, "state": gathered} if self.is_global_zero else {}

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: StrPath, storage_options: Any = None) -> None:
        if self._sharded_checkpoints:
            write_shards(checkpoint, Path(self.broadcast(filepath)))
        else:
            super().save_checkpoint(checkpoint, filepath, storage_options)

    @override
    def load_checkpoint(self, checkpoint_path: StrPath, weights_only: bool | None = None) -> dict[str, Any]:
        # Not Lightning's own, which loads weights before anything can check that they belong to this model.
        path = Path(self.broadcast(checkpoint_path))
        if path.is_dir():
            return read_shards(path, self._parameters_by_key())
        # Every process reads its part of each tensor: together they need at most one copy of the file in memory.
        return read_checkpoint(path, mmap=True)

    def _parameters_by_key(self) -> dict[str, torch.Tensor]:
        """The sharded parameters by the keys of their weights and optimizer states in a checkpoint."""
        assert self.lightning_module is not None
        keys: dict[str, torch.Tensor] = {}
        # Tied weights are in a checkpoint under each of their names.
        named = self.lightning_module.named_parameters(remove_duplicate=False)
        keys |= {f"state_dict.{name}": parameter for name, parameter in named}
        for index, optimizer in enumerate(self.optimizers):
            parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
            keys |= {f"optimizer_states.{index}.{number}": parameter for number, parameter in enumerate(parameters)}
        return keys

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        state = dict(checkpoint["state_dict"])
        # Every process has read the file by itself and takes its part of each tensor.
        full = not any(isinstance(value, DTensor) for value in state.values())
        options = StateDictOptions(full_state_dict=full, strict=strict)
        set_model_state_dict(self.lightning_module, state, options=options)

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(_shard_state(state, optimizer))


def _sharded_parts(policy: torch.nn.Module) -> list[FSDPModule]:
    return [part for part in policy.modules() if isinstance(part, FSDPModule)]


def _shard_state(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """The state of an optimizer with this process's shard of each tensor that has the shape of its parameter."""

    def shard(value: Any, parameter: torch.Tensor) -> Any:
        if isinstance(value, DTensor) or not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
            return value
        assert isinstance(parameter, DTensor)
        # Without a source rank nothing is sent: each process has the full tensor.
        return distribute_tensor(
            value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
        )

    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    by_number = dict(zip(numbers, parameters, strict=True))
    states = {
        number: {name: shard(value, by_number[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": states}
