"""A network too large for one device: each process holds a part of its weights, by torch's FSDP2.

The weights of a block are put together for its forward pass, and again for its backward pass.
Gradients are averaged and cut as the backward pass goes on. So gradients and the optimizer's
moments are cut as the weights are (Zhao et al. 2023, arXiv:2304.11277; ZeRO stage 3, Rajbhandari
et al. 2019, arXiv:1910.02054).

What others do with a network goes on to work: a deep copy is a network of the same class with
parts of its own, which cannot run until it is `put_together`; and whole weights can be loaded.
"""

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.optim import Optimizer

from ganlab.ranks.shards import is_shard, joined

BLOCK = 2**14  # numbers: a part with more is put together alone, smaller ones with what is around


def shard(network: nn.Module, device: torch.device, size: int) -> None:
    """Cut the weights of a network among the processes, in place; every process must do it.

    :param network: the same on all processes, on any device.
    :param size: how many processes there are.
    """
    plain = copy.deepcopy(network, {id(p): _weightless(p) for p in network.parameters()})
    mesh = init_device_mesh(device.type, (size,))
    for block in _blocks(network):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    vars(network)["__deepcopy__"] = partial(_copied, network, plain)
    network._register_load_state_dict_pre_hook(partial(_cut, network))


def shard_states(optimizer: Optimizer) -> None:
    """Let the optimizer of a sharded network load moments that are whole."""
    optimizer.register_load_state_dict_pre_hook(_cut_moments)


def put_together(network: nn.Module) -> nn.Module:
    """A copy of a network with whole weights, for evaluation; every process must ask for it.

    The network itself if it is not sharded.
    """
    if not any(is_shard(parameter) for parameter in network.parameters()):
        return network
    made = copy.deepcopy(network)
    for module in made.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(joined(parameter), requires_grad=False)
    return made


def _weightless(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The modules that are put together one at a time, the whole one last."""
    for child in network.children():
        if sum(parameter.numel() for parameter in child.parameters()) > BLOCK:
            yield from _blocks(child)
    if type(network).forward is not nn.Module.forward:  # a ModuleList is never called
        yield network


def _copied(network: nn.Module, plain: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A network as `plain` is, with copies of this process's parts."""
    with torch.no_grad():
        for old, now in zip(plain.parameters(), network.parameters(), strict=True):
            memo[id(old)] = nn.Parameter(now.detach().clone(), now.requires_grad)
        for buffer, value in zip(plain.buffers(), network.buffers(), strict=True):
            memo[id(buffer)] = value.clone()
    made = copy.deepcopy(plain, memo)
    made._register_load_state_dict_pre_hook(partial(_cut, made))
    return made


def _cut(network: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Replace whole tensors in a state by this process's parts, before it is loaded."""
    for name, parameter in network.named_parameters():
        key = prefix + name
        if key in state:
            state[key] = _like(parameter, state[key])


def _cut_moments(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    places = [place for group in state["param_groups"] for place in group["params"]]
    mine = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    parameters = dict(zip(places, mine, strict=False))
    cut = {
        place: {n: _like(parameters[place], value) for n, value in moments.items()}
        for place, moments in state["state"].items()
    }
    return state | {"state": cut}


def _like(parameter: Any, value: Any) -> Any:
    if not is_shard(parameter) or not isinstance(value, Tensor) or is_shard(value):
        return value
    if value.shape != parameter.shape:
        return value
    mesh, places = parameter.device_mesh, parameter.placements
    # every process has the whole, so nothing need be sent
    on = value.to(parameter.device, parameter.dtype)
    return distribute_tensor(on, mesh, places, src_data_rank=None)
