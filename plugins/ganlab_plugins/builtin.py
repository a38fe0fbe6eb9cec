"""Built-in data: images that every installation already has, without a download."""

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from ganlab import ImageStore, Plugin, hookimpl, read_image
from ganlab_plugins.dead_leaves import Floats, gallery, paint

_TRAINING = (
    "rocket.jpg",
    "hubble_deep_field.jpg",
    "retina.jpg",
    "brick.png",
    "grass.png",
    "gravel.png",
)
# file -> sha256 of its pixels, [H, W, 3] or [H, W]: scores are comparable only on equal images
_HELD_OUT = {
    "astronaut.png": "a8c429c18afa7b0fd5673e598d73a21225d94c864a71bbb3885126fdecb41071",
    "chelsea.png": "416b729128bfb2c3d1eb69bf9b1734a796293abc17939267b2dc94f8a5784031",
    "coffee.png": "0ce2b51640b9c95f19617f03eabf40c3f0368589cc1ee1190b70966165ac184f",
    "camera.png": "5cb24482a53416f99052258be2b1ee38cd31c559a70c8a8b321cba231b332e21",
}
_SIDE = 320
_SEED = 0


class Builtin(Plugin):
    """A demonstration set that every installation has: six photographs and dead leaves.

    The training images are the photographs rocket, hubble_deep_field, retina, brick, grass and
    gravel of scikit-image (public domain or CC0; the last three are grey), in sRGB (rocket is
    converted from Adobe RGB), and synthetic dead leaves in their colours (see `dead_leaves`). The
    held-out images are astronaut, chelsea, coffee and camera, which are never trained on. The set
    is enough to try methods and compare them, but not to train a generator for use: for that, give
    `image_folder` a real set such as DIV2K.

    The leaves are painted once and kept in ganlab's cache folder ($GANLAB_CACHE).
    """

    crop: int = Field(64, ge=8, le=_SIDE)
    """Side of a training crop in pixels (HR)."""
    leaves_share: float = Field(0.5, ge=0, le=1)
    """Share of the crops that come from dead leaves, in 0..1; the rest are of photographs."""
    num_leaves: int = Field(48, ge=1, le=10_000)
    """Dead leaves images of 320 x 320 pixels; painted once, about 50 ms each."""
    flips: bool = True
    """Mirror half of the crops."""
    turns: bool = True
    """Turn crops by a random multiple of 90 degrees."""

    _stores: tuple[ImageStore, ImageStore] | None = PrivateAttr(None)

    @hookimpl
    def sample_real(self, batch_size: int, device: torch.device) -> Tensor:
        # as near the share as a batch allows, and equal to it on average
        chance = torch.rand((), generator=self.host_rng, dtype=torch.float64)
        leaves = int(batch_size * self.leaves_share + chance)
        counts = (batch_size - leaves, leaves)
        return torch.cat(
            [
                store.crops(count, self.crop, self.host_rng, device, self.flips, self.turns)
                for store, count in zip(self._both(), counts, strict=True)
            ]
        )

    @hookimpl
    def samples_drawn(self) -> list[str]:
        return [name for store in self._both() for name in store.drawn()]

    @hookimpl
    def data_digest(self) -> dict[str, str]:
        photographs, leaves = self._both()
        return photographs.digests | leaves.digests

    def _both(self) -> tuple[ImageStore, ImageStore]:
        """The photographs and the dead leaves, read at the first call."""
        if self._stores is None:
            photographs = ImageStore.of((name, self._read(name)) for name in _TRAINING)
            self._stores = photographs, self._leaves(photographs)
        return self._stores

    @hookimpl
    def evaluation_images(self) -> dict[str, Tensor]:
        images = {}
        for file, digest in _HELD_OUT.items():
            image = self._read(file)
            image = image[:1] if file == "camera.png" else image  # grey: its own luma
            pixels = image.permute(1, 2, 0).contiguous().numpy()
            if hashlib.sha256(pixels.data).hexdigest() != digest:
                raise self.error(
                    f"scikit-image's {file} is not the picture of the published scores; "
                    "reinstall scikit-image."
                )
            images[Path(file).stem] = image
        return images

    def _read(self, file: str) -> Tensor:
        # reads the files: importing skimage.io takes a second, and skimage.data may download
        skimage = importlib.util.find_spec("skimage")
        if skimage is None or skimage.origin is None:
            raise self.error(
                "scikit-image, which holds the photographs, is not installed; "
                "pip install scikit-image, or use dead_leaves or image_folder."
            )
        path = Path(skimage.origin).parent / "data" / file
        if not path.is_file():
            raise self.error(
                f"this installation of scikit-image lacks data/{file}; install it with pip, or "
                "use dead_leaves or image_folder."
            )
        return read_image(path)

    def _leaves(self, photographs: ImageStore) -> ImageStore:
        images = [photographs.image(i) for i in range(len(photographs))]

        def painter(rng: np.random.Generator) -> Tensor:
            # one of the three colour photographs, and one of all six
            pair = [images[i] for i in rng.integers((3, 6))]
            return paint(_SIDE, _colours(pair, rng), rng)

        source = Path(__file__).read_bytes()
        # not the version of scikit-image: other decoders and colour conversions count too
        return gallery(_SEED, self.num_leaves, painter, source, photographs.digests)


def _colours(photographs: list[Tensor], rng: np.random.Generator) -> Floats:
    """1024 colours from these photographs, [1024, 3] in 0..1, as many dark as bright ones."""
    pixels = torch.cat(
        [image.flatten(1)[:, :: image[0].numel() // 4096] for image in photographs], 1
    ).T.numpy()
    colours = (pixels / 255).astype(np.float32)
    level = (colours @ np.array([0.299, 0.587, 0.114]) * 15.99).astype(int)
    # each level is equally likely: most of the night sky is black, most of a brick wall grey
    chances = 1 / np.bincount(level)[level]
    return np.asarray(colours[rng.choice(len(colours), 1024, p=chances / chances.sum())])
