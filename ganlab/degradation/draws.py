"""Random draws of a degradation: one per image on the device, or one per batch on the host."""

from collections.abc import Sequence

import torch
from torch import Tensor

Range = tuple[float, float]


def uniform(bounds: Range, images: Tensor, generator: torch.Generator | None) -> Tensor:
    """One number U(low, high) per image.

    :param images: [N, ...], float; only its length, dtype and device are read.
    :param generator: on the device of the images; None: torch's global generator.
    :returns: [N].
    """
    low, high = bounds
    u = torch.rand(len(images), generator=generator, device=images.device, dtype=images.dtype)
    return low + (high - low) * u


def uniform_whole(
    bounds: tuple[int, int], images: Tensor, generator: torch.Generator | None
) -> Tensor:
    """One whole number per image, low to high inclusive, all equally likely: [N], float."""
    low, high = bounds
    # rand() is below 1, but low + (high - low) * rand() may round up to high
    return uniform((float(low), high + 1.0), images, generator).floor().clamp(max=high)


def chance(probability: float, images: Tensor, generator: torch.Generator | None) -> Tensor:
    """True with this probability for each image: bool [N, 1, 1, 1], to use with `torch.where`."""
    return (uniform((0.0, 1.0), images, generator) < probability)[:, None, None, None]


def choice(
    probabilities: Sequence[float], images: Tensor, generator: torch.Generator | None
) -> Tensor:
    """The index of one of several kinds for each image: int64 [N].

    One uniform number is compared with thresholds, because `torch.multinomial` waits for a GPU.
    """
    u = uniform((0.0, 1.0), images, generator)
    index = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    for threshold in _thresholds(probabilities):
        index += u >= threshold
    return index


def host_uniform(bounds: Range, generator: torch.Generator | None) -> float:
    """One number U(low, high) for a whole batch, drawn on the CPU."""
    low, high = bounds
    u = torch.rand((), generator=generator, dtype=torch.float64, device="cpu")
    return low + (high - low) * float(u)


def host_choice(probabilities: Sequence[float], generator: torch.Generator | None) -> int:
    """The index of one of several kinds for a whole batch, drawn on the CPU."""
    u = host_uniform((0.0, 1.0), generator)
    return sum(u >= threshold for threshold in _thresholds(probabilities))


def host_order(count: int, generator: torch.Generator | None) -> list[int]:
    """0 to count - 1 in a random order, drawn on the CPU."""
    return torch.randperm(count, generator=generator, device="cpu").tolist()


def rising(bounds: Range) -> Range:
    """[low, high] with low <= high.

    For use as a validator of options.
    """
    if bounds[0] > bounds[1]:
        raise ValueError("must be [low, high], the lower bound first")
    return bounds


def summing_to_one(probabilities: tuple[float, ...]) -> tuple[float, ...]:
    """Probabilities that sum to 1.

    For use as a validator of options: the probabilities of kinds that exclude one another.
    """
    if abs(sum(probabilities) - 1) > 1e-6 or min(probabilities) < 0:
        raise ValueError("must be probabilities that sum to 1")
    return probabilities


def _thresholds(probabilities: Sequence[float]) -> list[float]:
    """The numbers in 0..1 at which kind k ends and kind k + 1 begins; 2 where no kind follows."""
    ends = [sum(probabilities[: k + 1]) for k in range(len(probabilities) - 1)]
    # a sum of 0.9999999999 must not leave room for a kind of probability 0
    return [2.0 if end > 1 - 1e-6 else end for end in ends]
