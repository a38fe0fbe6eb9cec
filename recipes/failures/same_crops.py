"""Always the same few crops: a data set far too small."""

from collections.abc import Generator

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from ganlab import Plugin, hookimpl


class SameCrops(Plugin):
    """Trains on the first crops that the data source draws, again and again."""

    num_crops: int = Field(16, ge=1)
    """How many there are."""

    _kept: Tensor | None = PrivateAttr(None)

    @hookimpl(wrapper=True)
    def sample_real(self, batch_size: int) -> Generator[None, Tensor, Tensor]:
        images = yield
        have = 0 if self._kept is None else len(self._kept)
        if have < self.num_crops:
            new = images[: self.num_crops - have]
            self._kept = new if self._kept is None else torch.cat([self._kept, new])
        which = torch.randint(len(self._kept), (batch_size,), generator=self.host_rng)
        return self._kept[which]

    def state_dict(self) -> dict[str, Tensor | None]:
        return {"kept": self._kept}

    def load_state_dict(self, state: dict[str, Tensor | None]) -> None:
        self._kept = state["kept"]
