"""LPIPS as a score: a distance of images that was fitted to human perception."""

from typing import ClassVar, Literal

from pydantic import Field, PrivateAttr
from torch import Tensor

from ganlab import (
    LPIPSNetwork,
    Plugin,
    RecipePath,
    Run,
    hookimpl,
    load_weights,
    to_float,
    weights_file,
)


class LPIPS(Plugin):
    """LPIPS distance of held-out images from their references (Zhang 2018, arXiv:1801.03924).

    `ganlab.LPIPSNetwork` computes the distance: 0 for equal images, lower is better. The literature
    reports version 0.1 with AlexNet. Whole images are compared, and no border is cut. A grey image
    counts as a colour image of three equal channels. The weights of the network come from a file;
    nothing is downloaded.
    """

    published: ClassVar = LPIPSNetwork.published("alex", "vgg", "squeeze")

    network: Literal["alex", "vgg", "squeeze"] = "alex"
    """AlexNet, VGG16 or SqueezeNet 1.1; their figures are not comparable."""

    weights: RecipePath | None = None
    """The file of weights; by default weights/<torchvision's file name> in ganlab's cache folder,
    alexnet-owt-7be5be79.pth for alex."""

    sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{8,64}$")
    """Beginning of the file's digest; by default that of the file which torchvision publishes."""

    _network: LPIPSNetwork | None = PrivateAttr(None)

    @hookimpl
    def check_recipe(self, run: Run) -> None:
        self._on(run)  # so that a missing file is reported before any data are read

    @hookimpl
    def run_start(self, run: Run) -> None:
        network = self._on(run)
        for name, image in run.held_out.items():
            _, height, width = image.shape
            cropped = 3, height - height % run.scale, width - width % run.scale
            network.check(self, cropped, f"the pixels of {name}")

    def _on(self, run: Run) -> LPIPSNetwork:
        """The network, built on first use, because `ganlab eval` does not call `check_recipe`."""
        if self._network is None:
            network = LPIPSNetwork(self.network)
            file = weights_file(network.file_name, self.weights)
            sha256 = self.sha256 or network.sha256
            load_weights(self, network, file, sha256, network.source, ignored=network.ignored)
            self._network = network.to(run.device, run.dtype).eval().requires_grad_(False)
        return self._network

    @hookimpl
    def score_images(self, run: Run, sr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        a, b = (to_float(image).to(run.dtype).expand(-1, 3, -1, -1) for image in (sr, hr))
        network = self._on(run)
        network.check(self, (3, *hr.shape[-2:]), "held-out images")
        return {self.name: network(a, b)[0]}
