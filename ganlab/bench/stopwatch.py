"""Where the time of an iteration goes: all time counts for the innermost section that is open.

The parts are those of `iteration.iterate`: hooks by plugin, G and D forward, backward,
optimizers. On CUDA every change of section waits for the device, so the parts add up to more than
the time of an iteration that is not measured.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from ganlab.iteration import iterate
from ganlab.monitoring.attribution import gradients
from ganlab.monitoring.calls import Watch, watching
from ganlab.plugin import Batch, Losses
from ganlab.run import Eager, Run, Update
from ganlab.speed.device import now

ENGINE = "engine"
PHASES = (
    "data", "degrade", "augment", "G forward", "G backward", "D forward", "D backward", "losses",
    "penalty", "optimizer", "events", ENGINE,
)  # fmt: skip
_OF_HOOK = {
    "sample_real": "data",
    "sample_batch": "data",
    "degrade": "degrade",
    "augment": "augment",
    "labels": "losses",
    "discriminator_loss": "losses",
    "generator_loss": "losses",
    "penalty": "penalty",
    "gradients": "optimizer",
    "iteration_start": "events",
    "iteration_end": "events",
}
Part = tuple[str, str]
"""A phase, and the plugin that runs in it, or "engine"."""


def time_parts(run: Run, iterations: int) -> dict[Part, float]:
    """Milliseconds per iteration of each part: the mean over iterations from `run.iteration` on.

    The backward pass of a penalty is counted as penalty. For this, D's whole backward pass is
    measured, and divided in proportion to the time that each loss takes alone.
    """
    watch = Stopwatch(run)
    with watch.running():
        for _ in range(iterations):
            iterate(run)
            run.iteration += 1
    found = {part: 1000 * seconds / iterations for part, seconds in watch.seconds.items()}
    backward = time_backward(run)
    for role in "GD":
        of_role = {part: ms for part, ms in backward.items() if part[0] == role}
        whole = found.pop((f"{role} backward", ENGINE), 0.0)
        for (_, name), ms in of_role.items():
            plugin, hook = watch.losses.get(name, (ENGINE, ""))
            phase = "penalty" if hook == "penalty" else f"{role} backward"
            part = (phase, plugin)
            found[part] = found.get(part, 0.0) + whole * ms / max(sum(of_role.values()), 1e-9)
    return found


def time_backward(run: Run) -> dict[Part, float]:
    """Milliseconds of the backward pass of each loss alone, by role ("G", "D") and logged name."""
    found: dict[Part, float] = {}

    @contextmanager
    def timed(role: str, module: nn.Module, losses: Losses) -> Iterator[Losses]:
        parameters = list(module.parameters())
        for name, loss in losses.items():
            began = now(run.device)
            gradients(loss, parameters)
            found[role, name] = 1000 * (now(run.device) - began)
        yield {}

    iterate(run, timed)
    return found


class Stopwatch:
    """Divides the time of iterations among their parts."""

    def __init__(self, run: Run) -> None:
        self.seconds: dict[Part, float] = defaultdict(float)
        self.losses: dict[str, tuple[str, str]] = {}
        """Plugin and hook of each logged loss."""
        self._run = run
        self._open: list[Part] = [(ENGINE, ENGINE)]
        self._since = 0.0

    @property
    def current(self) -> Part:
        """The innermost part that is running."""
        return self._open[-1]

    @contextmanager
    def running(self) -> Iterator[None]:
        run, before, backward = self._run, self._run.execution, Tensor.backward
        update = _TimedUpdate(self)

        def timed_backward(tensor: Tensor, *arguments: Any, **options: Any) -> None:
            with self.section(f"{update.role} backward", ENGINE):
                backward(tensor, *arguments, **options)

        handles = [
            register_optimizer_step_pre_hook(lambda *_: self.enter(("optimizer", ENGINE))),
            register_optimizer_step_post_hook(lambda *_: self.leave()),
        ]
        run.execution = update
        patched: Any = Tensor
        patched.backward = timed_backward
        self._since = now(run.device)
        try:
            with watching(run.manager, self._begin):
                yield
            self._charge()
        finally:
            run.execution, patched.backward = before, backward
            for handle in handles:
                handle.remove()

    def enter(self, part: Part) -> None:
        self._charge()
        self._open.append(part)

    def leave(self) -> None:
        self._charge()
        self._open.pop()

    @contextmanager
    def section(self, phase: str, plugin: str) -> Iterator[None]:
        self.enter((phase, plugin))
        try:
            yield
        finally:
            self.leave()

    def _charge(self) -> None:
        moment = now(self._run.device)
        self.seconds[self._open[-1]] += moment - self._since
        self._since = moment

    def _begin(self, hook: str, plugin: str, wraps: bool) -> "_Section":
        return _Section(self, hook, plugin)


class _Section(Watch):
    """Times one call of a hook, and records which losses it returned."""

    def __init__(self, watch: Stopwatch, hook: str, plugin: str) -> None:
        self._watch, self._hook, self._plugin = watch, hook, plugin

    def __enter__(self) -> None:
        self._watch.enter((_OF_HOOK.get(self._hook, ENGINE), self._plugin))

    def __exit__(self, *error: object) -> None:
        self._watch.leave()

    def answered(self, answer: Any) -> None:
        named = answer if isinstance(answer, dict) else {}
        if self._hook == "discriminator_loss":
            named = {"D/adversarial": answer}
        for name in named:
            self._watch.losses.setdefault(name, (self._plugin, self._hook))


class _TimedUpdate(Eager):
    """Carries out every update as written, and times the networks separately."""

    def __init__(self, watch: Stopwatch) -> None:
        self.role = "G"
        self._watch = watch

    def network(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        phase = "G forward" if module is self._watch._run.G else "D forward"

        def timed(images: Tensor) -> Tensor:
            with self._watch.section(phase, ENGINE):
                answer: Tensor = module(images)
            return answer

        return timed

    def take(self, run: Run, update: Update, batch: Batch) -> Losses:
        self.role = update.role
        return update(run, batch)
