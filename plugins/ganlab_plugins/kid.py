"""KID: the unbiased distance between the Inception features of SR patches and of HR patches."""

from torch import Tensor

from ganlab import InceptionDistance


class KID(InceptionDistance):
    """Kernel Inception distance between patches of SR and of HR, at the same places.

        KID = mean over pairs i != j of k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(y_i, x_j)
        k(a, b) = (a . b / dims + 1)^3

    x_i and y_i are the features of the Inception network of 2015 at place i in SR and in HR
    (Binkowski et al. 2018, arXiv:1801.01401). 0 is right. The estimate is unbiased for any number
    of patches, so it is sometimes below 0. It is exactly 0 where SR equals HR.

    Deviations: the paper averages over random subsets of 1000 images; here the mean is over all
    pairs, the limit for more and more subsets. The paper has i = j in the mixed terms too, which is
    right for independent images. Here the two patches of one place are dependent, so these terms
    are left out, which causes no bias.

    The weights are read from the file `weights`, or by default from the cache folder. It is slow
    without a GPU: about 0.2 s per patch, and SR and HR patches both count.
    """

    def distance(self, sr: Tensor, hr: Tensor) -> Tensor:
        return kernel_distance(sr, hr)


def kernel_distance(first: Tensor, second: Tensor) -> Tensor:
    """Unbiased squared MMD of paired rows, with the cubic kernel: [N, D], [N, D] -> 0-d."""
    rows, dims = first.shape

    def sum_of_others(a: Tensor, b: Tensor) -> Tensor:
        kernel = (a @ b.T / dims + 1) ** 3
        return kernel.sum() - kernel.trace()

    within = sum_of_others(first, first) + sum_of_others(second, second)
    return (within - 2 * sum_of_others(first, second)) / (rows * (rows - 1))
