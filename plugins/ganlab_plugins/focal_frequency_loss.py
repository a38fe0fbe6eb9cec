"""Focal frequency loss: the spectra should agree; large differences get large weights."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor, fft

from ganlab import NonNegativeSchedule, Plugin, Schedule, hookimpl


class FocalFrequencyLoss(Plugin):
    """Focal frequency loss (Jiang et al. 2020, arXiv:2012.12821).

        loss = mean over frequencies, channels and images of  w |F(fake) - F(real)|^2
        w = |F(fake) - F(real)|^alpha / its maximum over the frequencies of that channel and image

    F is the orthonormal 2-D Fourier transform of a whole channel, and w is a constant: no
    gradient passes through it. With all w = 1 the loss would be the mean squared error. The
    authors' optional logarithm, patches and batch-wide maximum are left out; all are off in
    their code as well.
    """

    images_only: ClassVar[bool] = True

    weight: NonNegativeSchedule = Schedule.constant(1.0)
    """Factor on this term, which is at most the mean squared error."""

    alpha: float = Field(1.0, ge=0)
    """How strongly frequencies with large differences are preferred; 0: mean squared error."""

    @hookimpl
    def generator_loss(self, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        difference = fft.fft2(fake - real.detach(), norm="ortho")
        power = difference.real.square() + difference.imag.square()
        focus = power.detach() ** (self.alpha / 2)
        largest = focus.amax(dim=(-2, -1), keepdim=True)
        # where real and fake agree in all frequencies, power is 0, so any weight will do
        weight = focus / largest.where(largest > 0, 1)
        return {f"G/{self.name}": self.weight.value * (weight * power).mean()}
