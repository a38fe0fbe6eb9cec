"""FID: the distance between the Inception features of SR patches and of HR patches."""

import torch
from torch import Tensor

from ganlab import InceptionDistance


class FID(InceptionDistance):
    """Fréchet Inception distance between patches of SR and of HR, at the same places.

        FID = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))

    m and S are the mean and the covariance of the features of the Inception network of 2015 (Heusel
    et al. 2017, arXiv:1706.08500); patches are resized as TensorFlow 1 did. 0 is right.

    FID is biased upwards if there are few patches, and more so for larger `dims`. So compare only
    figures with equal options and images. Do not compare them with published figures, which use
    50 000 whole images. `kid` has no such bias. The trace of (S1 S2)^(1/2) is computed as the sum
    of the singular values of A1 A2^T, where S = A^T A. This is exact even where S is singular,
    with fewer patches than `dims`.

    The weights are read from the file `weights`, or by default from the cache folder. It is slow
    without a GPU: about 0.2 s per patch, and SR and HR patches both count.
    """

    def distance(self, sr: Tensor, hr: Tensor) -> Tensor:
        return frechet_distance(sr, hr)


def frechet_distance(first: Tensor, second: Tensor) -> Tensor:
    """Squared Fréchet distance of the Gaussians fitted to two samples: [N, D], [M, D] -> 0-d."""
    roots = []
    for sample in (first, second):
        centred = (sample - sample.mean(0)) / (len(sample) - 1) ** 0.5
        # R of the QR decomposition has R^T R = S too, but no more rows than dimensions
        roots.append(torch.linalg.qr(centred, mode="r").R)
    traces = sum(root.square().sum() for root in roots)
    overlap = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return (first.mean(0) - second.mean(0)).square().sum() + traces - 2 * overlap
