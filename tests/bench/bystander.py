"""A plugin that is called at every hook, does nothing, and can note when iterations end."""

import json
import os
import time
from pathlib import Path
from typing import ClassVar

from ganlab import Plugin, hookimpl


class Bystander(Plugin):
    """Takes part in every hook and changes nothing."""

    share_forward: ClassVar[bool | None] = True

    writes: bool = False
    """Write to $GANLAB_TIMES: when the first iteration began and each ended, and peak memory."""

    _times: list = []

    @hookimpl(wrapper=True)
    def degrade(self):
        return (yield)

    @hookimpl(wrapper=True)
    def augment(self):
        return (yield)

    @hookimpl(wrapper=True)
    def labels(self):
        return (yield)

    @hookimpl(wrapper=True)
    def evaluation_generator(self):
        return (yield)

    @hookimpl(wrapper=True)
    def sample_real(self):
        return (yield)

    @hookimpl(wrapper=True)
    def sample_batch(self):
        return (yield)

    @hookimpl(wrapper=True)
    def discriminator_loss(self):
        return (yield)

    @hookimpl(wrapper=True)
    def discriminator_step(self):
        return (yield)

    @hookimpl(wrapper=True)
    def generator_step(self):
        return (yield)

    @hookimpl
    def penalty(self):
        return {}

    @hookimpl
    def generator_loss(self):
        return {}

    @hookimpl
    def run_start(self):
        self._times.clear()

    @hookimpl
    def iteration_start(self):
        if not self._times:
            self._times.append(time.time())

    @hookimpl
    def iteration_end(self, run):
        self._times.append(time.time())
        if self.writes and run.iteration + 1 == run.recipe.iterations:
            status = Path("/proc/self/status").read_text().splitlines()
            peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
            found = {"times": self._times, "peak_mib": peak / 1024}
            Path(os.environ["GANLAB_TIMES"]).write_text(json.dumps(found))

    @hookimpl
    def run_end(self):
        pass
