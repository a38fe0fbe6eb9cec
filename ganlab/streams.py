"""Counter-based randomness: every stream is a function of (seed, name, moment) and nothing else."""

import hashlib

import torch


def stream_seed(*key: object) -> int:
    """A 63-bit seed from a key: equal keys give equal seeds on every machine."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Streams:
    """The random generators of one run, all set anew at every moment of it.

    A moment is a point of the run such as (iteration 7, D step, 0). Nothing depends on how many
    numbers were drawn before it or by whom, so a resumed run needs no generator state, two
    recipes see the same crops, and adding a plugin does not shift the others.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.seed = seed
        self.device = torch.device(device)
        self._moment: tuple[object, ...] = ("assembly",)
        self._generators: dict[tuple[str, str], torch.Generator] = {}

    def moment(self, *moment: object) -> None:
        """Set every stream to where it is at this moment, torch's global one included."""
        self._moment = moment
        seed = stream_seed(self.seed, "torch", *moment)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)
        for key, generator in self._generators.items():
            generator.manual_seed(stream_seed(self.seed, *key, *moment))

    def generator(self, name: str) -> torch.Generator:
        """The stream of this name on the run's device."""
        return self._get(name, "device", self.device)

    def host_generator(self, name: str) -> torch.Generator:
        """The stream of this name on the CPU."""
        return self._get(name, "host", torch.device("cpu"))

    def _get(self, name: str, side: str, device: torch.device) -> torch.Generator:
        key = (name, side)
        if key not in self._generators:
            generator = torch.Generator(device)
            generator.manual_seed(stream_seed(self.seed, *key, *self._moment))
            self._generators[key] = generator
        return self._generators[key]
