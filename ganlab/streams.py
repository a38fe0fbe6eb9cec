"""Counter-based randomness: every stream is a function of (seed, name, moment) and nothing else."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def stream_seed(*key: object) -> int:
    """A 63-bit seed from a key: equal keys give equal seeds on every machine."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Streams:
    """The random generators of one run, all seeded again at every moment of it.

    A moment is a point of the run such as (iteration 7, D step, 0). No stream depends on how many
    numbers were drawn before, or by whom. So a resumed run needs no generator state, two recipes
    see the same crops, and adding a plugin does not shift the others.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.seed = seed
        self.device = torch.device(device)
        self._moment: tuple[object, ...] = ("assembly",)
        self._generators: dict[tuple[str, str], torch.Generator] = {}
        self._refusing = False

    def moment(self, *moment: object) -> None:
        """Seed every stream for this moment, torch's global one included."""
        self._moment = moment
        seed = stream_seed(self.seed, "torch", *moment)
        for generator in self._of_torch():
            generator.manual_seed(seed)
        for key, generator in self._generators.items():
            generator.manual_seed(stream_seed(self.seed, *key, *moment))

    @property
    def now(self) -> tuple[object, ...]:
        """The moment at which the streams stand."""
        return self._moment

    def generator(self, name: str) -> torch.Generator:
        """The stream of this name on the run's device."""
        return self._get(name, "device", self.device)

    def host_generator(self, name: str) -> torch.Generator:
        """The stream of this name on the CPU."""
        if self._refusing:
            raise RuntimeError("draws on the CPU, which a captured graph cannot repeat")
        return self._get(name, "host", torch.device("cpu"))

    def on_device(self) -> list[torch.Generator]:
        """The streams on the run's device, torch's own left out."""
        return [g for (_, side), g in self._generators.items() if side == "device"]

    @contextmanager
    def host_draws_refused(self) -> Iterator[None]:
        """Context in which asking for a stream on the CPU raises RuntimeError."""
        self._refusing = True
        try:
            yield
        finally:
            self._refusing = False

    def state(self) -> list[tuple[torch.Generator, Tensor]]:
        """The state of every stream, torch's own included; for `set_state`."""
        known = [*self._of_torch(), *self._generators.values()]
        return [(generator, generator.get_state()) for generator in known]

    def set_state(self, state: list[tuple[torch.Generator, Tensor]]) -> None:
        """Restore every stream; one that was made since then begins its moment again."""
        for key, generator in self._generators.items():
            generator.manual_seed(stream_seed(self.seed, *key, *self._moment))
        for generator, saved in state:
            generator.set_state(saved)

    def _of_torch(self) -> list[torch.Generator]:
        """The generators from which torch's own layers draw, of the CPU and of the device."""
        found = [torch.default_generator]
        if self.device.type == "cuda":
            found.append(torch.cuda.default_generators[self.device.index or 0])
        elif self.device.type == "mps":
            found.append(torch.mps._get_default_mps_generator())
        return found

    def _get(self, name: str, side: str, device: torch.device) -> torch.Generator:
        key = (name, side)
        if key not in self._generators:
            generator = torch.Generator(device)
            generator.manual_seed(stream_seed(self.seed, *key, *self._moment))
            self._generators[key] = generator
        return self._generators[key]
