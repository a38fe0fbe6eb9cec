"""Latent noise: the generator starts from random numbers, not from an image."""

from collections.abc import Generator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ganlab import (
    Plugin,
    Run,
    hookimpl,
)


class Latent(Plugin):
    """Latent noise as the whole condition (Goodfellow et al. 2014, arXiv:1406.2661).

    `z ~ N(0, 1)`, or uniform in -1..1, [N, dim], drawn anew for every batch. A total degradation:
    nothing of the real samples is left but their number. So the generator is unconditional, there
    is nothing to enlarge, and data with held-out images is refused. For toy problems and for
    generation; the generator must take [N, dim], as `mlp` does.
    """

    dim: int = Field(2, ge=1)
    """Random numbers per sample."""

    distribution: Literal["normal", "uniform"] = "normal"
    """Of each number: N(0, 1), or uniform in -1..1."""

    @hookimpl(wrapper=True)
    def degrade(self) -> Generator[None, Tensor, Tensor]:
        images = yield
        shape = (len(images), self.dim)
        noise = torch.empty(shape, device=images.device, dtype=images.dtype)
        if self.distribution == "normal":
            return noise.normal_(generator=self.rng)
        return noise.uniform_(-1, 1, generator=self.rng)

    @hookimpl
    def run_start(self, run: Run) -> None:
        if run.held_out:
            raise self.error(
                "leaves nothing of an image to enlarge, and the data holds out images to judge "
                "that on; use a degradation such as bicubic, or data without held-out images"
            )
