"""A plugin that is called at every hook, does nothing, and can note when iterations end."""

import json
import os
import resource
import time
from pathlib import Path
from typing import ClassVar

import torch

from ganlab import Plugin, hookimpl


class Bystander(Plugin):
    """Takes part in every hook and changes nothing."""

    share_forward: ClassVar[bool | None] = True

    writes: bool = False
    """Write to $GANLAB_TIMES: when the first iteration began and each ended, the peak memory
    after each and at the end, and how long each checkpoint held training up."""

    _times: list = []
    _held_up: list = []
    _faults: list = []
    _peaks: list = []
    _ended: tuple = ()

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
    def iteration_start(self, run):
        now, faults = time.time(), page_faults()
        if not self._times:
            self._times.append(now)
        recipe, number = run.recipe, run.iteration
        if self._ended and number % recipe.checkpoint_every == 0 and number % recipe.evaluate_every:
            self._held_up.append(now - self._ended[0])
            self._faults.append(faults - self._ended[1])

    @hookimpl
    def iteration_end(self, run):
        self._times.append(time.time())
        self._ended = (self._times[-1], page_faults())
        self._peaks.append(peak_mib())
        self._write(run.iteration + 1 == run.recipe.iterations)

    @hookimpl
    def run_end(self, run):
        self._peaks.append(peak_mib())
        if self.writes:
            self._write(True, copies=[copy_seconds(run) for _ in range(5)])

    def _write(self, due, **more):
        if self.writes and due:
            found = {"times": self._times, "peaks": self._peaks}
            found |= {"held_up": self._held_up, "faults": self._faults}
            Path(os.environ["GANLAB_TIMES"]).write_text(json.dumps(found | more))


def peak_mib() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def page_faults() -> int:
    """Of this thread so far."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt


def copy_seconds(run) -> float:
    """The time to copy as many bytes as a checkpoint's, from and to memory in use: the least."""
    numbers = 3 * sum(p.numel() for network in run.networks.values() for p in network.parameters())
    source, target = torch.zeros(numbers), torch.zeros(numbers)
    began = time.time()
    target.copy_(source)
    return time.time() - began
