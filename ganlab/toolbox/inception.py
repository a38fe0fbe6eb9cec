"""The base of FID and KID: distances between Inception features."""

from typing import ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from ganlab.plugin import EvaluatedImage, Plugin, RecipePath, hookimpl
from ganlab.published import PublishedFile
from ganlab.run import Run
from ganlab.toolbox.patches import random_patches, require_held_out
from ganlab.toolbox.weights import load_weights, weights_file

INCEPTION = PublishedFile(
    name="inception",
    source="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
    licence="Apache-2.0; trained on ImageNet, whose terms may apply",
    size=95_628_359,
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    sha256_from="torch-fidelity (the first 8 digits) and public records",
)


class InceptionDistance(Plugin):
    """Base of a distance between the Inception features of SR patches and of HR patches.

    The patches of SR and HR are cut at the same random places. The weights file is read from the
    cache folder, or from `weights`. Slow without a GPU: about 0.2 s for each SR patch and each HR
    patch.
    """

    published: ClassVar = (INCEPTION,)

    patch: int = Field(128, ge=32, le=1024)
    """Side of a patch in pixels; the network sees it resized to 299."""

    num_patches: int = Field(256, ge=2)
    """Number of SR patches, and of HR patches."""

    dims: Literal[64, 192, 768, 2048] = 2048
    """Number of features: 2048 as published; those of earlier layers need fewer patches."""

    weights: RecipePath | None = None
    """The file weights-inception-2015-12-05-6726825d.pth; default: the one in the cache folder."""

    _network: nn.Module | None = PrivateAttr(None)

    def distance(self, sr: Tensor, hr: Tensor) -> Tensor:
        """The distance of two sets of features, float64 [num_patches, dims] each: a 0-d tensor."""
        raise NotImplementedError

    @hookimpl
    def check_recipe(self, run: Run) -> None:
        self._features_on(run.device)

    @hookimpl
    def run_start(self, run: Run) -> None:
        require_held_out(self, run, self.patch)

    @hookimpl
    def evaluate(self, run: Run, images: list[EvaluatedImage]) -> dict[str, float]:
        if not images:
            return {}
        network = self._features_on(run.device)
        pair = random_patches(self, images, self.patch, self.num_patches)
        sr, hr = (network(patches.to(run.device)).to("cpu", torch.float64) for patches in pair)
        return {self.name: self.distance(sr, hr).item()}

    def _features_on(self, device: torch.device) -> nn.Module:
        """The network, loaded at the first call, since `ganlab eval` calls no `check_recipe`."""
        if self._network is None:
            # torch-fidelity takes seconds to import, and a recipe needs it only here
            from ganlab.toolbox.inception_network import InceptionFeatures

            network = InceptionFeatures(self.dims)
            file = weights_file(INCEPTION.file_name, self.weights)
            load_weights(self, network, file, INCEPTION.sha256, INCEPTION.source)
            self._network = network.to(device)
        return self._network
