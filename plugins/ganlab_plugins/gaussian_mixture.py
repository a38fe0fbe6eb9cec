"""Mixtures of Gaussians in the plane: data whose modes can be counted."""

import math
from typing import Literal

import torch
from PIL import Image, ImageDraw, ImageFont
from pydantic import PrivateAttr
from torch import Tensor, nn
from torch.nn import functional as F

from ganlab import (
    History,
    Plugin,
    Run,
    Verdict,
    content_digest,
    hookimpl,
    write_png,
)

NUM_SAMPLES = 5000
COVERED = 20  # samples near a centre that make its mode covered
NEAR = 0.2  # distance, as a share of the spacing of the centres
SIDE, LIMIT = 512, 2.0  # side of the picture in pixels; both axes show -2..2
GREY, BLUE = (0.72, 0.72, 0.72), (0.05, 0.3, 0.75)


class GaussianMixture(Plugin):
    """Toy data: 8 Gaussians on a ring or 25 on a grid (Gulrajani et al. 2017, arXiv:1704.00028).

    A sample is a point in the plane, [N, 2]; every centre is equally likely. Each evaluation uses
    5000 samples of the generator and 5000 of the data, drawn in the same way every time. A sample
    is near a centre when it is within 20 % of the distance between neighbouring centres.

    - `modes`: number of centres with at least 20 samples near them.
    - `near`: share of the samples that are near a centre. 1 is right; the others lie between modes.
    - `mode_kl`: KL divergence, in nats, of the histogram of nearest centres from the uniform
      distribution. All samples count. The data itself has 0.0007 on the ring and 0.0024 on the
      grid: with K centres, 5000 samples give (K - 1) / 10000 on average.
    - `energy_distance`: `2 E|X - Y| - E|X - X'| - E|Y - Y'|` (Szekely and Rizzo 2013,
      doi:10.1016/j.jspi.2013.03.018), unbiased, so that equal distributions give 0 on average.

    When G covers at most half of the centres in two evaluations, the verdict is `collapsed`.

    A picture in samples/ shows the generator's samples in blue over the data in grey, on axes from
    -2 to 2.
    """

    layout: Literal["ring", "grid"] = "ring"
    """`ring`: 8 centres at radius 2, standard deviation 0.02, all divided by 1.414. `grid`: 5 x 5
    centres 2 apart, standard deviation 0.05, all divided by 2.828."""

    _placed: tuple[Tensor, float] | None = PrivateAttr(None)

    @hookimpl
    def sample_real(self, batch_size: int, device: torch.device) -> Tensor:
        if self._placed is None or self._placed[0].device != device:
            centres, spread, _ = mixture(self.layout)
            self._placed = centres.to(device), spread  # once: CUDA waits for each copy
        centres, spread = self._placed
        which = torch.randint(len(centres), (batch_size,), generator=self.rng, device=device)
        noise = torch.randn(batch_size, 2, generator=self.rng, device=device, dtype=centres.dtype)
        return centres[which] + spread * noise

    @hookimpl
    def data_digest(self) -> dict[str, str]:
        return {self.layout: content_digest(*mixture(self.layout))}

    @hookimpl
    def evaluate(self, run: Run, generator: nn.Module) -> dict[str, float]:
        batch = run.hook.sample_batch(batch_size=NUM_SAMPLES, device=run.device)
        with run.autocast():
            made = generator(batch.condition).double()
        figures = judge(made, self.layout)
        figures["energy_distance"] = energy_distance(made, batch.real.double())
        if run.folder:
            title = f"iteration {run.iteration}: " + "  ".join(
                f"{name} {value:.3g}" for name, value in figures.items()
            )
            path = run.folder.samples / f"{run.iteration:07d}.png"
            write_png(picture(made.cpu(), batch.real.cpu(), title), path)
        return figures

    @hookimpl
    def verdicts(self, history: History) -> list[Verdict]:
        centres = len(mixture(self.layout)[0])
        tail = history.lasting("evaluation/modes", lambda n: n <= centres / 2, 2, "higher")
        if not tail:
            return []
        since, modes = tail[0][0], tail[-1][1]
        sentence = f"G collapsed from iteration {since:,}: it covers {modes:.0f} of {centres} modes"
        return [Verdict("collapsed", since, sentence)]


def mixture(layout: str) -> tuple[Tensor, float, float]:
    """Centres [K, 2] in float64, standard deviation, and distance between neighbouring centres."""
    if layout == "ring":
        angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
        centres = 2 * torch.stack([angle.cos(), angle.sin()], dim=1)
        return centres / 1.414, 0.02 / 1.414, 4 * math.sin(math.pi / 8) / 1.414
    axis = torch.arange(-2, 3, dtype=torch.float64) * 2
    return torch.cartesian_prod(axis, axis) / 2.828, 0.05 / 2.828, 2 / 2.828


def judge(made: Tensor, layout: str) -> dict[str, float]:
    """Modes covered, share of samples near a centre, KL of the mode histogram from uniform.

    :param made: [N, 2], float64. 20 samples cover a mode, a limit that is meant for N = 5000.
    """
    centres, _, spacing = mixture(layout)
    distance, nearest = torch.cdist(made, centres.to(made.device)).min(dim=1)
    near = distance <= NEAR * spacing
    num_near = torch.bincount(nearest[near], minlength=len(centres))
    share = torch.bincount(nearest, minlength=len(centres)).double() / len(made)
    return {
        "modes": float((num_near >= COVERED).sum()),
        "near": near.double().mean().item(),
        "mode_kl": torch.xlogy(share, share * len(centres)).sum().item(),
    }


def energy_distance(one: Tensor, other: Tensor) -> float:
    """Unbiased squared energy distance of two sets of points, [N, d] and [M, d]."""

    def mean_distance(a: Tensor, b: Tensor, num_pairs: int) -> float:
        # in slices: all pairs at once would take 200 MB
        return sum(torch.cdist(part, b).sum().item() for part in a.split(500)) / num_pairs

    n, m = len(one), len(other)
    within = mean_distance(one, one, n * (n - 1)) + mean_distance(other, other, m * (m - 1))
    return 2 * mean_distance(one, other, n * m) - within


def picture(made: Tensor, data: Tensor, title: str) -> Tensor:
    """Points [N, 2] in blue over points in grey, on axes from -2 to 2; uint8 [3, 512, 512]."""
    frame = Image.new("RGB", (SIDE, SIDE), "white")
    draw, font = ImageDraw.Draw(frame), ImageFont.load_default(size=13)
    for tick in (-1, 0, 1):
        at = _pixel(torch.tensor(float(tick))).item()
        draw.line([(at, 0), (at, SIDE)], fill=(235, 235, 235))
        draw.line([(0, SIDE - 1 - at), (SIDE, SIDE - 1 - at)], fill=(235, 235, 235))
        draw.text((at + 3, SIDE - 17), str(tick), fill=(120, 120, 120), font=font)
        draw.text((4, SIDE - 17 - at), str(tick), fill=(120, 120, 120), font=font)
    draw.text((6, 4), title, fill=(60, 60, 60), font=font)
    image = torch.frombuffer(bytearray(frame.tobytes()), dtype=torch.uint8)
    image = image.view(SIDE, SIDE, 3).permute(2, 0, 1) / 255
    for points, colour, size, strength in ((data, GREY, 7, 1.0), (made, BLUE, 3, 0.45)):
        # the more points overlap, the stronger the colour
        ink = 1 - (1 - strength) ** _counts(points, size).clamp(max=8)
        image = torch.lerp(image, torch.tensor(colour)[:, None, None], ink)
    return (image * 255).round().to(torch.uint8)


def _pixel(coordinate: Tensor) -> Tensor:
    return ((coordinate + LIMIT) * (SIDE / (2 * LIMIT))).floor().long()


def _counts(points: Tensor, size: int) -> Tensor:
    """Number of points on each pixel, [1, 512, 512]; a point is a square, `size` pixels wide."""
    points = points[(points.abs() < LIMIT).all(dim=1)]
    x, y = _pixel(points).unbind(1)
    image = torch.zeros(SIDE, SIDE)
    image.index_put_((SIDE - 1 - y, x), torch.ones(len(x)), accumulate=True)
    return F.avg_pool2d(image[None, None], size, 1, size // 2)[0] * size**2
