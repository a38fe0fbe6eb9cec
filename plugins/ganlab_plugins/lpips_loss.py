"""LPIPS as a loss: a distance of images that was fitted to human perception."""

from typing import ClassVar, Literal

from pydantic import Field, PrivateAttr
from torch import Tensor

from ganlab import (
    LPIPSNetwork,
    NonNegativeSchedule,
    Plugin,
    RecipePath,
    Run,
    Schedule,
    hookimpl,
    load_weights,
    weights_file,
)


class LPIPSLoss(Plugin):
    """Mean LPIPS distance of fake and real (Zhang et al. 2018, arXiv:1801.03924).

        sum over layers of  mean over positions of  sum over channels of  w (a / |a| - b / |b|)^2

    `ganlab.LPIPSNetwork` computes the distance. The weights w come with torchmetrics. The weights
    of `network` come from a file; nothing is downloaded. Images must have three colour channels and
    sides of at least 31 pixels (alex), 16 (vgg) or 17 (squeeze). A generator trained on the LPIPS
    of one network should be evaluated with that of another.
    """

    published: ClassVar = LPIPSNetwork.published("vgg", "alex", "squeeze")

    weight: NonNegativeSchedule = Schedule.constant(1.0)
    """Factor on this term."""

    network: Literal["alex", "vgg", "squeeze"] = "vgg"
    """AlexNet, VGG16 or SqueezeNet 1.1. The authors advise vgg for training, alex to evaluate."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the network's convolutions on CUDA; bfloat16 costs less. It changes the loss by 0.1 %, and
    its gradient by a quarter of the norm (cosine 0.97; HR 96, random weights)."""

    weights: RecipePath | None = None
    """The file of weights; by default weights/<torchvision's file name> in ganlab's cache folder,
    vgg16-397923af.pth for vgg."""

    sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{8,64}$")
    """Beginning of the file's digest; by default that of the file which torchvision publishes."""

    _network: LPIPSNetwork | None = PrivateAttr(None)

    @hookimpl
    def check_recipe(self, run: Run) -> None:
        network = LPIPSNetwork(self.network)
        file = weights_file(network.file_name, self.weights)
        sha256 = self.sha256 or network.sha256
        load_weights(self, network, file, sha256, network.source, ignored=network.ignored)
        self._network = network.prepared(self, run, self.precision)

    @hookimpl
    def run_start(self, run: Run) -> None:
        assert self._network is not None
        self._network.check(self, run.real_shape, "real samples")

    @hookimpl
    def generator_loss(self, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        assert self._network is not None, "no network before check_recipe"
        return {f"G/{self.name}": self.weight.value * self._network(fake, real.detach()).mean()}
