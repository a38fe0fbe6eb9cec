"""The highest speeds of this machine: matrix products, copies, small operations in a row."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ganlab.run import Run
from ganlab.speed.device import autocast, now

ROUNDS = 5
_SIDE = {"cpu": 1024, "cuda": 8192}  # of the square matrices: large enough to reach the peak
_COPIED = {"cpu": 2**26, "cuda": 2**30}  # bytes, well beyond any cache
_IN_A_ROW = 200


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The highest speeds, each the best of five measurements."""

    flops: float
    """FLOPs per second of a matrix product, computed as the convolutions of the recipe are."""
    bytes: float
    """Bytes that a copy reads and writes per second."""
    launch_seconds: float
    """Seconds of one operation on a few numbers: the cost of the call."""
    products_in: str = "float32"
    """How the matrix product was computed: in float32, TF32, bfloat16 or float64."""

    def or_higher(self, other: "Ceilings") -> "Ceilings":
        """The better of two measurements, figure by figure."""
        return Ceilings(
            max(self.flops, other.flops),
            max(self.bytes, other.bytes),
            min(self.launch_seconds, other.launch_seconds),
            self.products_in,
        )


def measure_ceilings(run: Run) -> Ceilings:
    """Measure the ceilings on the run's device; this takes a second or two."""
    device = run.device
    kind = device.type if device.type in _SIDE else "cpu"
    side = _SIDE[kind]
    a, b = (torch.randn(side, side, device=device, dtype=run.dtype) for _ in range(2))
    source = torch.ones(_COPIED[kind], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    few = torch.zeros(8, device=device)

    def product() -> None:
        with _as_convolutions(run):
            a @ b

    def in_a_row() -> None:
        for _ in range(_IN_A_ROW):
            few.add_(1)

    return Ceilings(
        flops=2 * side**3 / _quickest(run, product),
        bytes=2 * source.nbytes / _quickest(run, lambda: target.copy_(source)),
        launch_seconds=_quickest(run, in_a_row) / _IN_A_ROW,
        products_in=_products_in(run),
    )


@contextmanager
def _as_convolutions(run: Run) -> Iterator[None]:
    """Context in which matrix products are computed as convolutions are, in TF32 for example.

    Training computes its own matrix products in float32, but most of its work is convolutions.
    """
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        with autocast(run.recipe.precision, run.device):
            yield
    finally:
        matmul.allow_tf32 = before


def _products_in(run: Run) -> str:
    if run.device.type != "cuda":
        return str(run.dtype).removeprefix("torch.")
    if run.recipe.precision != "float32":
        return run.recipe.precision
    # Ampere, the first with TF32, is 8.0
    has_tf32 = torch.cuda.get_device_capability(run.device) >= (8, 0)
    return "TF32" if torch.backends.cudnn.allow_tf32 and has_tf32 else "float32"


def _quickest(run: Run, function: Callable[[], object]) -> float:
    function()
    times = []
    for _ in range(ROUNDS):
        began = now(run.device)
        function()
        times.append(now(run.device) - began)
    return min(times)
