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

    The condition is `z ~ N(0, 1)`, or uniform in -1..1, [N, dim], drawn again for every batch. It
    depends on the real samples only by their number. So the generator is unconditional, there is
    nothing to enlarge, and data with held-out images is refused. For toy problems and for
    unconditional generation; the generator must take [N, dim], as `mlp` does.
    """

    dim: int = Field(2, ge=1)
    """Random numbers per sample."""

    distribution: Literal["normal", "uniform"] = "normal"
    """Distribution of each number: N(0, 1), or uniform in -1..1."""

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
                "replaces each image by noise, so the held-out images of the data cannot be "
                "enlarged; use a degradation such as bicubic, or data without held-out images"
            )
