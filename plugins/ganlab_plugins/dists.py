"""DISTS as a score: how far structure and texture differ in the features of VGG16."""

from typing import ClassVar

from pydantic import Field, PrivateAttr
from torch import Tensor

from ganlab import (
    DISTSNetwork,
    Plugin,
    RecipePath,
    Run,
    hookimpl,
    load_weights,
    to_float,
    weights_file,
)


class DISTS(Plugin):
    """DISTS distance of held-out images from their references (Ding 2020, arXiv:2004.07728).

    `ganlab.DISTSNetwork` computes the distance: 0 for equal images, lower is better. Whole images
    are compared at their own size, and no border is cut. The authors shrink images to a shorter
    side of 256, so their figures differ for larger images. A grey image counts as a colour image of
    three equal channels. The weights of VGG16 come from a file; nothing is downloaded.
    """

    published: ClassVar = (DISTSNetwork.FILES["vgg16"],)

    weights: RecipePath | None = None
    """The file of weights; by default weights/vgg16-397923af.pth in ganlab's cache folder."""

    sha256: str = Field("397923af", pattern="^[0-9a-fA-F]{8,64}$")
    """Beginning of the file's digest; by default that of the file which torchvision publishes."""

    _network: DISTSNetwork | None = PrivateAttr(None)

    @hookimpl
    def check_recipe(self, run: Run) -> None:
        self._on(run)  # so that a missing file is reported before any data are read

    def _on(self, run: Run) -> DISTSNetwork:
        """The network, built on first use, because `ganlab eval` does not call `check_recipe`."""
        if self._network is None:
            network = DISTSNetwork()
            file = weights_file(network.file_name, self.weights)
            load_weights(self, network, file, self.sha256, network.source, ignored=network.ignored)
            self._network = network.to(run.device, run.dtype).eval().requires_grad_(False)
        return self._network

    @hookimpl
    def score_images(self, run: Run, sr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        a, b = (to_float(image).to(run.dtype).expand(-1, 3, -1, -1) for image in (sr, hr))
        return {self.name: self._on(run)(a, b)[0]}
