"""FID: the distance between the Inception features of SR patches and of HR patches."""

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


class FID(Plugin):
    """Fréchet Inception distance between patches of SR and of HR, at the same places.

        FID = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))

    m and S are mean and covariance of the features of the Inception network of 2015 (Heusel et
    al. 2017, arXiv:1706.08500), resized as TensorFlow 1 did. 0 is right.

    Biased upwards with few patches, the more so the more of `dims` there are: compare only
    figures of equal options and images, and none of these with published ones, which are of 50 000
    whole images. `kid` has no such bias. The trace is the sum of the singular values of A1 A2^T,
    where S = A^T A: exact also where S is singular, with fewer patches than `dims`.

    Reads the weights file from the cache folder, or from `weights`. Slow without a GPU: about
    0.2 s a patch, half of them SR and half HR.
    """

    patch: int = Field(128, ge=32, le=1024)
    """Side of a patch in pixels; the network sees it resized to 299."""

    num_patches: int = Field(256, ge=2)
    """Patches of each kind."""

    dims: Literal[64, 192, 768, 2048] = 2048
    """Which features: 2048 as published, or an earlier layer's, which need fewer patches."""

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
        return {self.name: frechet_distance(sr, hr).item()}

    def _features_on(self, device: torch.device) -> nn.Module:
        """The network, loaded when first asked for: `ganlab eval` starts no run."""
        if self._network is None:
            network = InceptionFeatures(self.dims)
            file = weights_file(network.file_name, self.weights)
            load_weights(self, network, file, network.sha256, network.source)
            self._network = network.to(device)
        return self._network


def frechet_distance(first: Tensor, second: Tensor) -> Tensor:
    """Squared Fréchet distance of the Gaussians fitted to two samples: [N, D], [M, D] -> 0-d."""
    roots = []
    for sample in (first, second):
        centred = (sample - sample.mean(0)) / (len(sample) - 1) ** 0.5
        # R of QR has the same R^T R = S, and no more rows than there are dimensions
        roots.append(torch.linalg.qr(centred, mode="r").R)
    traces = sum(root.square().sum() for root in roots)
    overlap = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return (first.mean(0) - second.mean(0)).square().sum() + traces - 2 * overlap
