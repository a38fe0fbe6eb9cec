"""DISTS as a loss: how far structure and texture differ in the features of VGG16."""

from typing import ClassVar, Literal

from pydantic import Field, PrivateAttr
from torch import Tensor

from ganlab import (
    DISTSNetwork,
    NonNegativeSchedule,
    Plugin,
    RecipePath,
    Run,
    Schedule,
    hookimpl,
    load_weights,
    weights_file,
)


class DISTSLoss(Plugin):
    """Mean DISTS distance of fake and real (Ding et al. 2020, arXiv:2004.07728).

        1 - sum over stages and channels of  alpha l(means) + beta s(variances, covariance)

    `ganlab.DISTSNetwork` computes the distance. It compares global statistics, so it does not
    punish a texture that is right but shifted; for super-resolution, use it together with a pixel
    loss. alpha and beta come with torchmetrics. The weights of VGG16 come from a file; nothing is
    downloaded. Images must have three colour channels.
    """

    published: ClassVar = (DISTSNetwork.FILES["vgg16"],)

    weight: NonNegativeSchedule = Schedule.constant(1.0)
    """Factor on this term."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Of VGG's convolutions on CUDA; bfloat16 costs less. It changes the loss by at most 0.1 %,
    its gradient by 0.05 of the norm (cosine 0.999; HR 96, random weights)."""

    weights: RecipePath | None = None
    """The file of weights; by default weights/vgg16-397923af.pth in ganlab's cache folder."""

    sha256: str = Field("397923af", pattern="^[0-9a-fA-F]{8,64}$")
    """Beginning of the file's digest; by default that of the file which torchvision publishes."""

    _network: DISTSNetwork | None = PrivateAttr(None)

    @hookimpl
    def check_recipe(self, run: Run) -> None:
        network = DISTSNetwork()
        file = weights_file(network.file_name, self.weights)
        load_weights(self, network, file, self.sha256, network.source, ignored=network.ignored)
        self._network = network.prepared(self, run, self.precision)

    @hookimpl
    def run_start(self, run: Run) -> None:
        assert self._network is not None
        self._network.check(self, run.real_shape, "real samples")

    @hookimpl
    def generator_loss(self, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        assert self._network is not None, "no network before check_recipe"
        return {f"G/{self.name}": self.weight.value * self._network(fake, real.detach()).mean()}
