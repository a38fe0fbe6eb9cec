"""Small experiments into which the plugin under test is put, and the plugins that they consist of.

They are as plain as possible, and need no other distribution: what fails in them is the plugin
under test. A plugin takes the place of those that fill the same slot.
"""

from typing import Any, NamedTuple

import torch
from pydantic import PrivateAttr
from torch import Tensor, nn
from torch.nn import functional as F

from ganlab.images.resampling import resize, to_uint8
from ganlab.plugin import Losses, Plugin, hookimpl
from ganlab.speed.device import sent

_SIDE = 104  # of a photograph, in pixels; held-out ones are about twice as large


class KitPhotographs(Plugin):
    """Smooth random images; crops of two of them train, a third, of odd width, is held out."""

    crop: int = 32
    """Side of a training crop in pixels."""

    _images: Tensor = PrivateAttr(default_factory=lambda: _smooth(2, _SIDE))

    @hookimpl
    def sample_real(self, batch_size: int, device: torch.device) -> Tensor:
        most = (2, _SIDE - self.crop + 1, _SIDE - self.crop + 1)
        crops = [
            self._images[n, :, y : y + self.crop, x : x + self.crop]
            for n, y, x in zip(*(self._draw(below, batch_size) for below in most), strict=True)
        ]
        return sent(torch.stack(crops), device)

    def _draw(self, below: int, count: int) -> list[int]:
        drawn: list[int] = torch.randint(below, (count,), generator=self.host_rng).tolist()
        return drawn

    @hookimpl
    def evaluation_images(self) -> dict[str, Tensor]:
        return {"held out": to_uint8(_smooth(1, 200, 3))[0]}

    @hookimpl
    def data_digest(self) -> dict[str, str]:
        return {"photographs": "0" * 64}


class KitShrink(Plugin):
    """The condition: the images, made smaller by bicubic interpolation."""

    scale: int = 4
    """How many times smaller."""

    @hookimpl(wrapper=True)
    def degrade(self) -> Any:
        images = yield
        if images.dim() != 4:
            raise self.error(f"makes images smaller, not samples of {[*images.shape[1:]]}")
        return resize(images, tuple(side // self.scale for side in images.shape[-2:])).clamp(0, 1)


class KitGenerator(Plugin):
    """Two layers, with an enlargement between them for images."""

    @hookimpl
    def make_generator(self, condition_shape: tuple[int, ...], real_shape: tuple[int, ...]) -> Any:
        if len(condition_shape) != len(real_shape):
            raise self.error(f"cannot make {[*real_shape]} from {[*condition_shape]}")
        if len(real_shape) == 1:
            return _points_network(condition_shape[0], real_shape[0])
        return nn.Sequential(
            nn.Conv2d(condition_shape[0], 8, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=real_shape[-1] // condition_shape[-1]),
            nn.Conv2d(8, real_shape[0], 3, padding=1),
        )


class KitDiscriminator(Plugin):
    """Judges patches of images, or points; each image alone."""

    @hookimpl
    def make_discriminator(self, real_shape: tuple[int, ...]) -> Any:
        if len(real_shape) == 1:
            return _points_network(real_shape[0], 1)
        return nn.Sequential(
            nn.Conv2d(real_shape[0], 8, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(8, 1, 3, padding=1),
        )


class KitObjective(Plugin):
    """The non-saturating game (Goodfellow et al. 2014, arXiv:1406.2661)."""

    judges_by_sign = True

    @hookimpl
    def discriminator_loss(
        self, real_logits: Tensor, fake_logits: Tensor, real_label: Tensor, fake_label: Tensor
    ) -> Tensor:
        loss = F.binary_cross_entropy_with_logits
        return loss(real_logits, real_label) + loss(fake_logits, fake_label)

    @hookimpl
    def generator_loss(self, fake_logits: Tensor) -> Losses:
        return {"G/adversarial": F.softplus(-fake_logits).mean()}


class KitDistance(Plugin):
    """The mean absolute difference between the generator's and the real samples."""

    @hookimpl
    def generator_loss(self, fake: Tensor, real: Tensor) -> Losses:
        return {f"G/{self.name}": (fake - real).abs().mean()}


class KitPoints(Plugin):
    """Points on the unit circle."""

    @hookimpl
    def sample_real(self, batch_size: int, device: torch.device) -> Tensor:
        angle = torch.rand(batch_size, generator=self.host_rng) * (2 * torch.pi)
        return sent(torch.stack([angle.cos(), angle.sin()], 1), device)

    @hookimpl
    def data_digest(self) -> dict[str, str]:
        return {"points": "0" * 64}


class KitNoise(Plugin):
    """The condition of points: Gaussian noise."""

    @hookimpl(wrapper=True)
    def degrade(self, images: Tensor) -> Any:
        yield
        noise = torch.randn(len(images), 2, generator=self.host_rng, dtype=images.dtype)
        return sent(noise, images.device)


class World(NamedTuple):
    """An experiment: its plugins by name, and their options."""

    plugins: dict[str, type[Plugin]]
    options: dict[str, dict[str, Any]]


def _world(*kinds: type[Plugin], **options: dict[str, Any]) -> World:
    return World({kind().name: kind for kind in kinds}, options)


def images(crop: int = 32, scale: int = 4) -> World:
    """Super-resolution of images; `crop` is the side of a real one in pixels."""
    return _world(
        KitPhotographs, KitShrink, KitGenerator, KitDiscriminator, KitObjective, KitDistance,
        kit_photographs={"crop": crop}, kit_shrink={"scale": scale},
    )  # fmt: skip


def points() -> World:
    """A game on points of the plane, where nothing is an image."""
    return _world(KitPoints, KitNoise, KitGenerator, KitDiscriminator, KitObjective)


def _points_network(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 8), nn.LeakyReLU(0.2), nn.Linear(8, outputs))


def _smooth(count: int, side: int, wider: int = 0) -> Tensor:
    coarse = torch.rand(
        count, 3, side // 4, side // 4 + 1, generator=torch.Generator().manual_seed(0)
    )
    return resize(coarse, (side, side + wider)).clamp(0, 1)
