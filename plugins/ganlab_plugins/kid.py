"""KID: the unbiased distance between the Inception features of SR patches and of HR patches."""

from torch import Tensor

from ganlab import InceptionDistance


class KID(InceptionDistance):
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

    def distance(self, sr: Tensor, hr: Tensor) -> Tensor:
        return kernel_distance(sr, hr)


def kernel_distance(first: Tensor, second: Tensor) -> Tensor:
    """Unbiased squared MMD under the cubic kernel, of rows in pairs: [N, D], [N, D] -> 0-d."""
    rows, dims = first.shape

    def sum_of_others(a: Tensor, b: Tensor) -> Tensor:
        kernel = (a @ b.T / dims + 1) ** 3
        return kernel.sum() - kernel.trace()

    within = sum_of_others(first, first) + sum_of_others(second, second)
    return (within - 2 * sum_of_others(first, second)) / (rows * (rows - 1))
