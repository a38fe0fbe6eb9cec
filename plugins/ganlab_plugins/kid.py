"""KID: the unbiased distance between the Inception features of SR patches and of HR patches."""

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from ganlab import (
    InceptionFeatures,
    Plugin,
    RecipePath,
    hookimpl,
    load_weights,
    random_patches,
    require_held_out,
    weights_file,
)

if TYPE_CHECKING:
    from ganlab import Judged, Run


class KID(Plugin):
    """Kernel Inception distance between patches of SR and of HR, at the same places.

        KID = mean over pairs i != j of k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(y_i, x_j)
        k(a, b) = (a . b / dims + 1)^3

    x_i and y_i are the features of the Inception network of 2015 at place i in SR and in HR
    (Binkowski et al. 2018, arXiv:1801.01401). 0 is right; unbiased at any number of patches, so
    below 0 at times, and exactly 0 where SR equals HR.

    Deviations: the paper averages over random subsets of 1000 images; the mean over all pairs is
    what more and more subsets tend to. It takes i = j in the mixed terms too, right for independent
    images; here the two of a place are dependent, and left out they bias nothing.

    Reads the weights file from the cache folder, or from `weights`. Slow without a GPU: about
    0.2 s a patch, half of them SR and half HR.
    """

    patch: int = Field(128, ge=32, le=1024)
    """Side of a patch in pixels; the network sees it resized to 299."""

    num_patches: int = Field(256, ge=2)
    """Patches of each kind."""

    dims: Literal[64, 192, 768, 2048] = 2048
    """Which features: 2048 as published, or an earlier layer's."""

    weights: RecipePath | None = None
    """The file weights-inception-2015-12-05-6726825d.pth; left out, that of the cache folder."""

    _network: nn.Module | None = PrivateAttr(None)

    @hookimpl
    def run_start(self, run: "Run") -> None:
        require_held_out(self, run, self.patch)
        self._features_on(run.device)

    @hookimpl
    def evaluate(self, run: "Run", judged: "list[Judged]") -> dict[str, float]:
        if not judged:
            return {}
        network = self._features_on(run.device)
        pair = random_patches(self, judged, self.patch, self.num_patches)
        sr, hr = (network(patches.to(run.device)).to("cpu", torch.float64) for patches in pair)
        return {self.name: kernel_distance(sr, hr).item()}

    def _features_on(self, device: torch.device) -> nn.Module:
        """The network, loaded when first asked for: `ganlab eval` starts no run."""
        if self._network is None:
            network = InceptionFeatures(self.dims)
            file = weights_file(network.file_name, self.weights)
            load_weights(self, network, file, network.sha256, network.source)
            self._network = network.to(device)
        return self._network


def kernel_distance(first: Tensor, second: Tensor) -> Tensor:
    """Unbiased squared MMD under the cubic kernel, of rows in pairs: [N, D], [N, D] -> 0-d."""
    rows, dims = first.shape

    def sum_of_others(a: Tensor, b: Tensor) -> Tensor:
        kernel = (a @ b.T / dims + 1) ** 3
        return kernel.sum() - kernel.trace()

    within = sum_of_others(first, first) + sum_of_others(second, second)
    return (within - 2 * sum_of_others(first, second)) / (rows * (rows - 1))
