"""A GAN trainer as one writes it by hand, to be timed beside ganlab: no hooks, no checks, no state.

SRResNet and a VGG discriminator, L1 and a weighted GAN loss, Adam, an average of the generator, G
first and D on the same images: the loop of BasicSR's SRGAN model without its loader. Run alone:
`python tests/bench/plain.py CONFIG.json`, which prints what `against_plain.py` reads.
"""

import copy
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.PReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class SRResNet(nn.Module):
    """Four times, no batch norm; 1,517,571 parameters with 64 channels and 16 blocks."""

    def __init__(self, width: int = 64, num_blocks: int = 16) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, width, 9, padding=4), nn.PReLU())
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(num_blocks)))
        self.last_of_blocks = nn.Conv2d(width, width, 3, padding=1)
        up: list[nn.Module] = []
        for _ in range(2):
            up += [nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.PReLU()]
        self.up = nn.Sequential(*up)
        self.last = nn.Conv2d(width, 3, 9, padding=4)

    def forward(self, lr: Tensor) -> Tensor:
        x = self.first(lr)
        return self.last(self.up(x + self.last_of_blocks(self.blocks(x))))


def vgg_discriminator(width: int = 64, size: int = 128) -> nn.Module:
    """BasicSR's VGG-128 with batch norm; 14,499,401 parameters with 64 channels."""
    layers: list[nn.Module] = []
    channels = 3
    for i in range(5):
        wider = width * min(2**i, 8)
        for inputs, kernel, stride in ((channels, 3, 1), (wider, 4, 2)):
            layers.append(nn.Conv2d(inputs, wider, kernel, stride, 1, bias=not layers))
            if len(layers) > 1:
                layers.append(nn.BatchNorm2d(wider))
            layers.append(nn.LeakyReLU(0.2))
        channels = wider
    side = size // 32
    head = [nn.Linear(width * 8 * side * side, 100), nn.LeakyReLU(0.2), nn.Linear(100, 1)]
    return nn.Sequential(*layers, nn.Flatten(), *head)


def crops(images: list[Tensor], batch_size: int, size: int) -> Iterator[Pair]:
    """Random crops, flipped and turned, and what bicubic shrinking makes of them."""
    while True:
        batch = []
        for _ in range(batch_size):
            image = random.choice(images)
            top, left = (random.randint(0, side - size) for side in image.shape[1:])
            crop = image[:, top : top + size, left : left + size]
            if random.random() < 0.5:
                crop = crop.flip(2)
            batch.append(torch.rot90(crop, random.randint(0, 3), (1, 2)).float() / 255)
        hr = torch.stack(batch)
        lr = F.interpolate(hr, scale_factor=0.25, mode="bicubic", antialias=True)
        yield lr, hr


def train(
    G: nn.Module,
    D: nn.Module,
    pairs: Iterator[Pair],
    iterations: int,
    weight: float = 0.005,
    tell: Callable[[dict[str, Tensor]], None] = lambda losses: None,
    keep: Callable[[dict[str, Any]], None] = lambda parts: None,
) -> None:
    """The loop; `tell` gets each iteration's losses, and is called before the first one with {}.

    `keep` is called after it with all that a checkpoint holds.
    """
    average = copy.deepcopy(G).requires_grad_(False)
    of_g = torch.optim.Adam(G.parameters(), lr=1e-4, betas=(0.9, 0.99))
    of_d = torch.optim.Adam(D.parameters(), lr=1e-4, betas=(0.9, 0.99))
    bce = nn.BCEWithLogitsLoss()
    parts = {"G": G, "D": D, "average": average, "of_g": of_g, "of_d": of_d}
    tell({})
    for _ in range(iterations):
        lr, hr = next(pairs)

        for p in D.parameters():
            p.requires_grad = False
        of_g.zero_grad()
        sr = G(lr)
        l1 = F.l1_loss(sr, hr)
        logits = D(sr)
        adversarial = weight * bce(logits, torch.ones_like(logits))
        (l1 + adversarial).backward()
        of_g.step()

        for p in D.parameters():
            p.requires_grad = True
        of_d.zero_grad()
        logits = D(hr)
        real = bce(logits, torch.ones_like(logits))
        real.backward()
        logits = D(sr.detach())
        fake = bce(logits, torch.zeros_like(logits))
        fake.backward()
        of_d.step()

        for p, q in zip(average.parameters(), G.parameters(), strict=True):
            p.mul_(0.999).add_(q.detach(), alpha=0.001)
        tell({"l1": l1, "adversarial": adversarial, "real": real, "fake": fake})
        keep(parts)


def read_images(files: list[str]) -> list[Tensor]:
    import numpy as np
    from PIL import Image

    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    return [torch.from_numpy(image.transpose(2, 0, 1).copy()) for image in images]


def main(config: dict) -> None:
    torch.manual_seed(0)
    times: list[float] = []
    losses: list[float] = []

    def tell(found: dict[str, Tensor]) -> None:
        times.append(time.time())
        if len(times) % config["report_every"] == 0:  # as a user would, for a log line
            losses.append(sum(float(value) for value in found.values()))

    def keep(parts: dict[str, Any]) -> None:
        peaks.append(peak_mib())
        every = config.get("checkpoint_every", 0)
        if every and (len(times) - 1) % every == 0:
            began = time.time()
            state = {name: part.state_dict() for name, part in parts.items()}
            torch.save(state, config["checkpoint"])
            held_up.append(time.time() - began)
        if len(peaks) == config["iterations"]:
            peaks.append(peak_mib())

    held_up: list[float] = []
    peaks: list[float] = []
    G = SRResNet(config["width"], config["num_blocks"])
    D = vgg_discriminator(config["d_width"], config["size"])
    pairs = crops(read_images(config["images"]), config["batch_size"], config["size"])
    train(G, D, pairs, config["iterations"], tell=tell, keep=keep)
    print(json.dumps({"times": times, "peaks": peaks, "held_up": held_up}))


def peak_mib() -> float:
    """Peak memory of this process so far."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
