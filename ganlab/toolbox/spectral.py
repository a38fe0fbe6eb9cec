"""Whether layers with torch's spectral norm compute with weights of norm 1."""

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm

# power iteration approaches sigma from below, so W / sigma has a norm of 1 or little more
LEAST, MOST = 0.99, 1.1
SETTLING = 100  # steps


def spectrally_normed(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers of a network whose weight is divided by its largest singular value."""
    return [
        (name, module)
        for name, module in network.named_modules()
        if parametrize.is_parametrized(module, "weight")
        and any(isinstance(p, _SpectralNorm) for p in module.parametrizations["weight"])
    ]


def spectral_norm_faults(layers: Iterable[tuple[str, nn.Module]]) -> Iterator[str]:
    """A sentence for each layer whose weight has another spectral norm than 1."""
    for name, layer in layers:
        norm = spectral_norm_of(layer)
        if not LEAST <= norm <= MOST:
            yield (
                f"the layer {name} of the discriminator has the spectral norm {norm:.3g} after an "
                "iteration, not 1; let no other plugin change how its weights are normed"
            )


def spectral_norm_of(layer: nn.Module) -> float:
    """The largest singular value of the weight that a layer computes with when W stands still.

    W has just moved, and one step of power iteration follows it only slowly: after Adam's first
    step at 1e-3 a norm of 1.5 was measured. So more steps are taken, on a copy.
    """
    settled = copy.deepcopy(layer).train()
    with torch.no_grad():
        for _ in range(SETTLING):
            weight = torch.as_tensor(settled.weight)  # a step of power iteration
        transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
        matrix = (weight.transpose(0, 1) if transposed else weight).flatten(1)
        return float(torch.linalg.matrix_norm(matrix, 2))
