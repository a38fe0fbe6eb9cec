"""A tiny game, trained on one device in each way that a recipe may ask for there."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ganlab.assembly import assemble
from ganlab.errors import GanlabError, first_line
from ganlab.images.resampling import resize
from ganlab.iteration import iterate
from ganlab.plugin import Plugin, hookimpl
from ganlab.recipe.model import Recipe, recipe_of
from ganlab.run import Run
from ganlab.speed.device import choose_numerics, now, pick_device

ITERATIONS = {"cuda": 12}  # steps are captured as graphs from the fourth on
FEW = 3  # on other devices; a busy CPU may need seconds for each

Found = dict[str, Any]


class TinyGame(Plugin):
    """Blurred noise, to be enlarged two times; a GAN loss, a pixel loss and an R1 penalty."""

    @hookimpl
    def sample_real(self, batch_size: int, device: torch.device) -> Tensor:
        noise = torch.rand(batch_size, 3, 4, 4, generator=self.rng, device=device)
        return resize(noise, (16, 16))

    @hookimpl(wrapper=True)
    def degrade(self) -> Generator[None, Tensor, Tensor]:
        return resize((yield), (8, 8))

    @hookimpl
    def make_generator(self) -> nn.Module:
        last = nn.Conv2d(8, 12, 3, padding=1)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.LeakyReLU(0.2), last, nn.PixelShuffle(2)
        )

    @hookimpl
    def make_discriminator(self) -> nn.Module:
        first = nn.Conv2d(3, 8, 4, stride=2, padding=1)
        return nn.Sequential(first, nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 4, stride=2, padding=1))

    @hookimpl
    def discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()

    @hookimpl
    def penalty(self, discriminator: nn.Module, real: Tensor) -> dict[str, Tensor]:
        seen = real.clone().requires_grad_()
        (slope,) = torch.autograd.grad(discriminator(seen).sum(), seen, create_graph=True)
        return {"D/penalty": slope.square().mean()}

    @hookimpl
    def generator_loss(self, fake_logits: Tensor, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        pixels = (fake - real).abs().mean()
        return {"G/adversarial": F.softplus(-fake_logits).mean(), "G/pixels": pixels}


def try_device(device: torch.device) -> Found:
    """Train the tiny game on a device. A fault is reported in one line, and does not raise.

    :returns: `as_written`, and on CUDA also `graphs`, `deterministic`, `bfloat16` and `tf32`. Each
        has `fault`, or what was measured. A `..._apart` is the distance of the weights of two
        equal runs, as a share of the way that they have come; 0.0 is equal to the bit.
    """
    found = {"as_written": _attempt(_as_written, device)}
    if device.type == "cuda" and "fault" not in found["as_written"]:
        ways = {"graphs": _graphs, "deterministic": _deterministic, "bfloat16": _bfloat16}
        found |= {name: _attempt(way, device) for name, way in ways.items()}
        found["tf32"] = _attempt(_tf32, device)
        choose_numerics(device, tf32=True, deterministic=False)
    return found


def _attempt(way: Callable[[torch.device], Found], device: torch.device) -> Found:
    try:
        return way(pick_device(str(device)))
    except GanlabError as error:
        return {"fault": first_line(error)}
    except Exception as error:  # whatever is wrong with a device belongs into the report
        return {"fault": f"{type(error).__name__}: {first_line(error)}"}


def _as_written(device: torch.device) -> Found:
    one, two = (_trained(device, compile="off") for _ in range(2))
    auto = assemble(_recipe(device, compile="auto"), device)
    return {
        "first_ms": one.milliseconds[0],
        "ms": median(two.milliseconds),
        "iterations": len(two.milliseconds),
        "repeats_apart": one.apart(two),
        "compile_auto": "graphs" if auto.execution.keeps_graphs else "as written",
        "notes": [note for note in auto.notes if note not in one.run.notes],
    }


def _graphs(device: torch.device) -> Found:
    plain, captured = (_trained(device, compile=mode) for mode in ("off", "graphs"))
    return {
        "ms": median(captured.milliseconds[len(captured.milliseconds) // 2 :]),
        "plain_apart": plain.apart(captured),
        "notes": [note for note in captured.run.notes if note not in plain.run.notes],
    }


def _deterministic(device: torch.device) -> Found:
    modes = ("off", "off", "graphs")
    one, two, captured = (_trained(device, compile=mode, deterministic=True) for mode in modes)
    return {"repeats_apart": one.apart(two), "graphs_apart": one.apart(captured)}


def _bfloat16(device: torch.device) -> Found:
    made = _trained(device, compile="off", precision="bfloat16")
    native = torch.cuda.get_device_capability(device) >= (8, 0)
    return {"ms": median(made.milliseconds), "native": native}


def _tf32(device: torch.device) -> Found:
    """How far a float32 convolution is from the exact one, with and without TF32, as a share."""
    host = torch.Generator().manual_seed(0)
    images = torch.randn(4, 64, 32, 32, generator=host).to(device)
    weights = torch.randn(64, 64, 3, 3, generator=host).to(device)
    exact = F.conv2d(images.double(), weights.double())
    errors = []
    for tf32 in (True, False):
        choose_numerics(device, tf32, deterministic=False)
        wrong = F.conv2d(images, weights).double() - exact
        errors.append((wrong.norm() / exact.norm()).item())
    return {"error_with": errors[0], "error_without": errors[1]}


@dataclass(frozen=True, slots=True)
class Trained:
    """A tiny run after its iterations."""

    run: Run
    start: Tensor
    """All weights before the first iteration, in one row, float64 on the CPU."""
    weights: Tensor
    """The same after the last iteration."""
    milliseconds: list[float]
    """Of each iteration: one D step and one G step."""

    def apart(self, other: "Trained") -> float:
        """The distance to another run's weights, as a share of the way from the start."""
        way = (self.weights - self.start).norm()
        return ((other.weights - self.weights).norm() / way).item()


def _recipe(device: torch.device, **settings: Any) -> Recipe:
    size = {"iterations": ITERATIONS.get(device.type, FEW), "batch_size": 4, "watch_every": 0}
    return recipe_of("tiny game", {"tiny_game": TinyGame()}, **size, **settings)


def _trained(device: torch.device, **settings: Any) -> Trained:
    """Train the tiny game from its seed.

    :raises FloatingPointError: when a weight is not finite in the end.
    """
    run = assemble(_recipe(device, **settings), device)
    start, milliseconds = _weights(run), []
    with run.execution.running():
        for number in range(run.recipe.iterations):
            run.iteration = number
            began = now(device)
            iterate(run)
            milliseconds.append(1000 * (now(device) - began))
    weights = _weights(run)
    if not weights.isfinite().all():
        raise FloatingPointError(f"a weight is not finite after {run.recipe.iterations} iterations")
    return Trained(run, start, weights, milliseconds)


def _weights(run: Run) -> Tensor:
    parts = [p.detach().cpu() for module in run.networks.values() for p in module.parameters()]
    return torch.cat([part.flatten() for part in parts]).double()
