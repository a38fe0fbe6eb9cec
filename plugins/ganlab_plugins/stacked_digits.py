"""Stacked digits: toy images with a digit in each of three channels, so with 1000 modes."""

import torch
from PIL import Image, ImageDraw, ImageFont
from pydantic import PrivateAttr
from torch import Tensor, nn

from ganlab import (
    Plugin,
    Run,
    content_digest,
    hookimpl,
    write_png,
)

NUM_SAMPLES = 26_000
NUM_DIGITS, NUM_MODES = 10, 1000
CELLS, ENLARGED = 8, 4  # images along a side of a panel; side of an enlarged pixel


class StackedDigits(Plugin):
    """Three random digits in the channels of an image: 1000 modes (arXiv:1611.02163).

    Samples are [N, 3, 8, 8] in 0..1. The digits are the 1,797 scanned digits of scikit-learn's
    `load_digits` (Alpaydin and Kaynak 1998, doi:10.24432/C50P49) instead of MNIST, because they
    need no download. So figures of papers on stacked MNIST, 28 x 28 pixels, are not comparable.
    Each evaluation uses 26,000 samples of the generator, as many as in PacGAN (arXiv:1712.04086).
    The digit in a channel is that of the most similar (L2) of the 1,797 images. This rule is right
    for 98.8 % of them when each is left out in turn. The three digits of a sample form a number:

    - `modes`: how many of the 1000 numbers were generated at least once.
    - `mode_kl`: KL divergence, in nats, of the histogram of the numbers from the uniform
      distribution. The data itself has 0.020, because 26,000 samples are few for 1000 modes.

    A picture in samples/ shows 64 samples of the generator beside 64 of the data.
    """

    _digits: tuple[Tensor, Tensor] | None = PrivateAttr(None)

    @hookimpl
    def sample_real(self, batch_size: int, device: torch.device) -> Tensor:
        images, _ = self.digits(device)
        shape = (batch_size, 3)
        which = torch.randint(len(images), shape, generator=self.rng, device=device)
        return images[which]

    @hookimpl
    def data_digest(self) -> dict[str, str]:
        images, _ = self.digits(torch.device("cpu"))
        return {f"digit {i}": content_digest(image) for i, image in enumerate(images)}

    @hookimpl
    def evaluate(self, run: Run, generator: nn.Module) -> dict[str, float]:
        batch = run.hook.sample_batch(batch_size=NUM_SAMPLES, device=run.device)
        with run.autocast():
            made = torch.cat([generator(part) for part in batch.condition.split(2000)])
        if run.folder:
            path = run.folder.samples / f"{run.iteration:07d}.png"
            write_png(picture(made.cpu(), batch.real.cpu()), path)
        return self.figures(made)

    def figures(self, made: Tensor) -> dict[str, float]:
        """Modes covered, and KL divergence of the mode histogram from uniform.

        :param made: [N, 3, 8, 8].
        """
        images, labels = self.digits(made.device)
        known, channels = images.flatten(1), made.float().flatten(2).flatten(0, 1)
        nearest = torch.cat([torch.cdist(part, known).argmin(1) for part in channels.split(4096)])
        hundreds, tens, ones = labels[nearest].view(-1, 3).unbind(1)
        numbers = NUM_DIGITS * (NUM_DIGITS * hundreds + tens) + ones
        share = torch.bincount(numbers, minlength=NUM_MODES).double() / len(made)
        return {
            "modes": float((share > 0).sum()),
            "mode_kl": torch.xlogy(share, share * NUM_MODES).sum().item(),
        }

    def digits(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The images [1797, 8, 8] in 0..1 and their digits [1797]."""
        if self._digits is None or self._digits[0].device != device:
            from sklearn.datasets import load_digits  # takes a second to import

            data = load_digits()
            images = torch.tensor(data.images, dtype=torch.float32, device=device) / 16
            self._digits = images, torch.tensor(data.target, device=device)
        return self._digits


def picture(made: Tensor, data: Tensor) -> Tensor:
    """Picture of 8 x 8 samples at the left and of 8 x 8 data at the right; uint8 [3, H, W].

    :param made, data: [N, 3, 8, 8], at least 64 of them; clamped to 0..1.
    """
    panels = []
    for title, images in (("samples", made), ("data", data)):
        grid = images[: CELLS**2].float().clamp(0, 1).repeat_interleave(ENLARGED, 2)
        grid = nn.functional.pad(grid.repeat_interleave(ENLARGED, 3), (2, 2, 2, 2), value=1.0)
        rows = grid.unflatten(0, (CELLS, CELLS)).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
        header = Image.new("L", (rows.shape[-1], 18), 255)
        font = ImageFont.load_default(size=12)
        ImageDraw.Draw(header).text((4, 2), title, fill=0, font=font)
        pixels = torch.frombuffer(bytearray(header.tobytes()), dtype=torch.uint8)
        image = (rows * 255).round().to(torch.uint8)
        panels.append(torch.cat([pixels.view(1, 18, -1).expand(3, -1, -1), image], dim=1))
    return torch.cat(panels, dim=2)
