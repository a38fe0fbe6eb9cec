"""Spectral norm on every layer of any discriminator."""

from collections.abc import Generator
from typing import ClassVar

from pydantic import Field
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from ganlab import Plugin, Run, discriminators, hookimpl, spectral_norm_faults

Networks = list[nn.Module]


class SpectralNorm(Plugin):
    """Spectral normalisation of SNGAN (Miyato et al. 2018, arXiv:1802.05957).

    Every convolution and linear layer of the discriminator, whichever plugin makes it, uses the
    weight `W / sigma(W)`, where sigma is the largest singular value of W as a matrix [outputs,
    inputs * kernel]. So each layer's slope as such a matrix is at most 1. sigma comes from 15 steps
    of power iteration at the start, and `num_power_iterations` steps at each forward pass in
    training. Biases and the initial values of W are not changed.

    This is torch's own parametrization. A layer whose weights already have a norm is refused.
    """

    bounds_slope: ClassVar[bool] = True

    first_and_last: bool = True
    """Normalise the first and the last layer too; Real-ESRGAN's U-Net does not."""

    num_power_iterations: int = Field(1, ge=1, le=100)
    """Steps of power iteration at each forward pass in training."""

    @hookimpl(wrapper=True)
    def make_discriminator(self) -> Generator[None, Networks, Networks]:
        discriminators = yield
        for discriminator in discriminators:
            for name, layer in self._layers(discriminator):
                if parametrize.is_parametrized(layer) or "weight" not in layer._parameters:
                    raise self.error(
                        f"the discriminator's layer {name} has a norm of its weights already; set "
                        'its norm = "none", or remove ' + self.name
                    )
                parametrizations.spectral_norm(layer, n_power_iterations=self.num_power_iterations)
        return discriminators

    def invariants(self, run: Run) -> Generator[None, None, list[str]]:
        yield
        layers = [pair for D in discriminators(run) for pair in self._layers(D)]
        return list(spectral_norm_faults(layers))

    def _layers(self, discriminator: nn.Module) -> list[tuple[str, nn.Module]]:
        layers: list[tuple[str, nn.Module]] = [
            (name or type(module).__name__, module)
            for name, module in discriminator.named_modules()
            if isinstance(module, nn.modules.conv._ConvNd | nn.Linear)
        ]
        chosen = layers if self.first_and_last else layers[1:-1]
        if not chosen:
            raise self.error(
                f"the discriminator has {len(layers)} convolutions and linear layers, so there is "
                f"nothing to normalise; remove {self.name} or set first_and_last = true",
                "first_and_last",
            )
        return chosen
