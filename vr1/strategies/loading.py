"""Each process's part of the weights of a sharded policy."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

__all__ = ["load_shards"]


def load_shards(
    policy: nn.Module, weights: Mapping[str, Tensor], device: torch.device, common: Mapping[str, Tensor]
) -> None:
    """Give a policy that was sharded without content (device "meta") this process's part of its weights.

    Nothing is sent between processes: each reads its own rows, of one weight after the other, and converts them to the
    precision of the parameter.

    Args:
        policy: sharded by ``fully_shard``, its buffers in place.
        weights: all weights of the full policy by the names of its parameters, tied ones under each of their names; as
            a rule, tensors of mapped files.
        device: where the shards belong.
        common: by name, shards of another policy that this one has in common with it, instead of its own.
    """
    shards: dict[nn.Parameter, nn.Parameter] = {}
    state = {}
    for name, parameter in policy.named_parameters(remove_duplicate=False):
        if parameter not in shards:
            shard = common[name].detach() if name in common else _own_part(weights[name], parameter, device)
            shards[parameter] = nn.Parameter(shard, requires_grad=parameter.requires_grad)
        state[name] = shards[parameter]
    # Without content, there is nothing to copy to: the shards take the place of the parameters.
    missing, unexpected = policy.load_state_dict(state, strict=False, assign=True)
    assert not unexpected, unexpected
    assert set(missing) <= dict(policy.named_buffers()).keys(), missing


def _own_part(full: Tensor, parameter: nn.Parameter, device: torch.device) -> DTensor:
    """This process's part of a weight, as ``fully_shard`` divides it: rows, as ``torch.chunk`` would.

    Args:
        full: of the shape of the parameter.
        parameter: without content.
        device: where the part belongs.
    """
    assert isinstance(parameter, DTensor)
    assert full.shape == parameter.shape, (full.shape, parameter.shape)
    mesh = parameter.device_mesh
    chunks = full.chunk(mesh.size())
    # Of few rows, the last processes have none.
    rows = chunks[mesh.get_local_rank()] if mesh.get_local_rank() < len(chunks) else full[:0]
    own = torch.empty(rows.shape, dtype=parameter.dtype, device=device)
    own.copy_(rows)
    return DTensor.from_local(
        own, mesh, parameter.placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
    )
