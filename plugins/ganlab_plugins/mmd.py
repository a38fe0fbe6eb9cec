"""Maximum mean discrepancy: a kernel two-sample test between patches of SR and of HR."""

import torch
from pydantic import Field
from torch import Tensor

from ganlab import (
    EvaluatedImage,
    Plugin,
    Run,
    hookimpl,
    log_spectrum,
    random_patches,
    require_held_out,
)


class MMD(Plugin):
    """Squared maximum mean discrepancy between patches of SR and of HR, with a permutation test.

        MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y),  k(a, b) = exp(-|a - b|^2 / (2 s^2))

    The means are over pairs of different patches, so the estimate is unbiased, and sometimes below
    0. s is the median distance of all patches (Gretton et al. 2012, A kernel two-sample test, JMLR
    13). A patch is described by the log magnitudes of its discrete cosine transform, each divided
    by its standard deviation over all patches. `mmd` is MMD^2; 0 is right. `mmd_p` is the share of
    relabellings of the patches, the original labels included, whose MMD^2 is at least as large. It
    is valid for any number of patches.

    SR and HR patches come from independent places: patches of the same place are dependent, and
    must not be permuted. The result holds for these held-out images only. An evaluation takes less
    than 1 s at the defaults.
    """

    patch: int = Field(16, ge=4, le=32)
    """Side of a patch in pixels."""

    num_patches: int = Field(300, ge=10, le=5000)
    """Patches of SR, and as many of HR; time and memory grow with the square of the number."""

    num_permutations: int = Field(199, ge=19, le=100_000)
    """Random relabellings; the smallest possible p-value is 1 / (num_permutations + 1)."""

    @hookimpl
    def run_start(self, run: Run) -> None:
        require_held_out(self, run, self.patch)

    @hookimpl
    def evaluate(self, images: list[EvaluatedImage]) -> dict[str, float]:
        if not images:
            return {}
        sr, _ = random_patches(self, images, self.patch, self.num_patches)
        _, hr = random_patches(self, images, self.patch, self.num_patches)
        features = log_spectrum(torch.cat([sr, hr]))
        # one deviation for SR and HR together, so a relabelling does not change the features
        features = features / features.std(0).clamp(min=1e-6)
        value, p = kernel_test(features, self.num_permutations, self.host_rng)
        return {self.name: value, f"{self.name}_p": p}


def kernel_test(
    both: Tensor, num_permutations: int, generator: torch.Generator | None
) -> tuple[float, float]:
    """Unbiased MMD^2 between the first half of the rows and the second, and its p-value.

    :param both: float64 [2 N, D], N at least 2.
    """
    rows = len(both)
    distances = torch.cdist(both, both, compute_mode="donot_use_mm_for_euclid_dist")
    above = torch.ones(rows, rows, dtype=torch.bool).triu(1)
    width = distances[above].median().clamp(min=torch.finfo(both.dtype).tiny)
    kernel = torch.exp(-0.5 * (distances / width) ** 2).fill_diagonal_(0)
    order = torch.rand(num_permutations, rows, generator=generator, dtype=both.dtype).argsort(1)
    # row 0 is the original labelling
    is_first = (torch.cat([torch.arange(rows)[None], order]) < rows // 2).to(both.dtype)
    values = _unbiased(kernel, is_first)
    return values[0].item(), (values >= values[0] - 1e-12).double().mean().item()


def _unbiased(kernel: Tensor, is_first: Tensor) -> Tensor:
    """MMD^2 of each labelling: kernel [2 N, 2 N] with a zero diagonal, labels [B, 2 N] -> [B]."""
    half = kernel.shape[0] // 2
    with_first = is_first @ kernel
    within = (with_first * is_first).sum(1)
    between = (with_first * (1 - is_first)).sum(1)
    others = kernel.sum() - within - 2 * between
    return (within + others) / (half * (half - 1)) - 2 * between / half**2
