"""Radial spectrum: the power of SR at each spatial frequency, compared with HR."""

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ganlab import (
    Plugin,
    Run,
    hookimpl,
    luma,
)

ROUNDING = 1 / 12  # variance of rounding to whole grey levels: the floor of any 8-bit spectrum


class RadialSpectrum(Plugin):
    """Power spectrum of SR against that of HR, averaged over rings of equal frequency, in dB.

        error(r) = 10 log10(P_SR(r) / P_HR(r))
        P(r) = 1/12 + mean over ring r of |F(v Y)|^2 / sum v^2

    Y is the luma minus its mean, v is a Hann window, and F is the discrete Fourier transform. Ring
    r holds the frequencies nearest to r / min(H, W) cycles a pixel, up to 0.5. 1/12 is the power of
    rounding to 8 bits; it keeps the error of flat images finite. Durall, Keuper and Keuper 2020,
    arXiv:2003.01826, show where the spectrum of generated images fails at high frequencies.

    `radial_spectrum` is the mean of |error| over the rings; 0 is right, lower is better.
    `radial_spectrum_low`, `_middle` and `_high` are the mean errors of three bands: below 0, SR is
    too smooth; above 0, it is too sharp or noisy. The default bands meet at the Nyquist frequencies
    of LR at x4 and at x2.
    """

    middle_from: float = Field(0.125, ge=0.05, lt=0.5)
    """Where the middle band begins, in cycles a pixel."""

    high_from: float = Field(0.25, gt=0, le=0.45)
    """Where the high band begins, in cycles a pixel; it ends at 0.5."""

    @model_validator(mode="after")
    def _bands_in_order(self) -> "RadialSpectrum":
        if self.high_from - self.middle_from < 0.05:  # the width of a ring of the smallest images
            raise ValueError(
                "high_from must be at least middle_from + 0.05; raise it, or lower middle_from"
            )
        return self

    @hookimpl
    def score_images(self, run: Run, sr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        error = 10 * torch.log10(_radial_power(sr) / _radial_power(hr))
        frequency = torch.arange(1, len(error) + 1, device=error.device) / min(hr.shape[-2:])
        edges = (0.0, self.middle_from, self.high_from, 1.0)
        figures = {self.name: error.abs().mean()}
        for band, start, end in zip(("low", "middle", "high"), edges[:-1], edges[1:], strict=True):
            inside = (frequency >= start) & (frequency < end)
            figures[f"{self.name}_{band}"] = error[inside].mean()
        return figures


def _radial_power(image: Tensor) -> Tensor:
    """Mean power in rings 1, 2, ... of an image uint8 [1, C, H, W]: float64 [min(H, W) // 2]."""
    planes = luma(image)[0, 0]
    height, width = planes.shape
    window = _hann(height, planes.device)[:, None] * _hann(width, planes.device)
    power = torch.fft.fft2((planes - planes.mean()) * window).abs().square()
    power = power / window.square().sum()
    vertical, horizontal = (
        torch.fft.fftfreq(side, dtype=torch.float64, device=planes.device)
        for side in (height, width)
    )
    shortest = min(height, width)
    ring = (torch.hypot(vertical[:, None], horizontal) * shortest).round().to(torch.int64).flatten()
    totals = torch.bincount(ring, weights=power.flatten())
    rings = slice(1, shortest // 2 + 1)
    return ROUNDING + (totals / torch.bincount(ring).clamp(min=1))[rings]


def _hann(size: int, device: torch.device) -> Tensor:
    # without the window's two zeros, which would remove the outermost pixels
    return torch.hann_window(size + 2, periodic=False, dtype=torch.float64, device=device)[1:-1]
