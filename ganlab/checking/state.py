"""What a hook call could change, in a form that can be compared before and after the call."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ganlab.monitoring.calls import tensors
from ganlab.run import Run


@dataclass(frozen=True, slots=True)
class State:
    """What a hook call could change, in a form that can be compared."""

    weights: dict[str, str]
    """Of each network: a digest of its parameters."""
    modes: dict[str, tuple[bool, ...]]
    """Of each network: whether its modules are in training mode."""
    trainable: dict[str, tuple[bool, ...]]
    gradients: dict[str, list[tuple[int, int]]]
    """Of each network: the identity and the version of each gradient."""
    plugins: dict[str, str]
    """Of each plugin: a digest of the tensors that its state_dict returns."""
    seed: int
    """Of torch's own generator."""
    buffers: dict[str, str]
    """Of each network: a digest of its buffers, such as running statistics."""
    settings: dict[str, str]
    """Of each network: those of its optimizer, such as the learning rate."""

    @classmethod
    def of(cls, run: Run, owned: dict[str, list[Tensor]]) -> "State":
        """The state of a run at this moment."""
        networks = run.networks
        weights = {role: list(network.parameters()) for role, network in networks.items()}
        return cls(
            weights={role: _digest(each) for role, each in weights.items()},
            modes={
                role: tuple(module.training for module in network.modules())
                for role, network in networks.items()
            },
            trainable={
                role: tuple(p.requires_grad for p in each) for role, each in weights.items()
            },
            gradients={
                role: [(id(p.grad), p.grad._version) for p in each if p.grad is not None]
                for role, each in weights.items()
            },
            plugins={name: _digest(each) for name, each in owned.items()},
            seed=torch.initial_seed(),
            buffers={role: _digest(network.buffers()) for role, network in networks.items()},
            settings={role: _settings(each) for role, each in run.optimizers.items()},
        )


def _settings(optimizer: Optimizer) -> str:
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    return str([group | {"lr": float(group.get("lr", 0))} for group in groups])


def torch_settings() -> dict[str, Any]:
    """Settings of torch for the whole process that a call could leave changed."""
    return {
        "grad mode": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "number of threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }


def owned_tensors(run: Run) -> dict[str, list[Tensor]]:
    """The tensors in each plugin's state, where state_dict returns them without a copy."""
    owned = {}
    for name, plugin in run.recipe.plugins.items():
        with suppress(Exception):  # told when a checkpoint is written
            owned[name] = tensors(plugin.state_dict()) if hasattr(plugin, "state_dict") else []
    return owned


def _digest(tensors: Iterable[Tensor]) -> str:
    """Two sums over each tensor: a change of its values changes them."""
    found = [t.detach() for t in tensors if t.is_floating_point() and t.numel()]
    if not found:
        return ""
    norms = torch.stack(torch._foreach_norm(found))
    sums = torch.stack([t.sum() for t in found])
    return str([norms.tolist(), sums.tolist()])
