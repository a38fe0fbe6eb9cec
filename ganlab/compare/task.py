"""One run of a plan as a task that any executor can carry out, here or on another machine."""

import socket
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from ganlab.compare.bringing import Receiver, Sender, files_in, write_files
from ganlab.compare.plan import Job, Variant, make_plan
from ganlab.compare.ticket import Ticket, issue
from ganlab.ending import DONE, FAILED
from ganlab.errors import GanlabError, RecipeError
from ganlab.files import sha256
from ganlab.limits import Limits
from ganlab.recipe.model import Recipe, resolved
from ganlab.recipe.trust import trusting_code
from ganlab.runs.data import Data
from ganlab.runs.environment import code_digest
from ganlab.runs.folder import InUse, RunFolder, plugin_record
from ganlab.session import resume, start
from ganlab.speed.device import pick_device
from ganlab.stopping import INTERRUPTED, SIGTERMED, Stopped, heard
from ganlab.toolbox.executor import Executor, Outcome, Sent, Task

_TASK = "task.toml"
LOCK_SECONDS = 60.0
"""How long a worker waits for a run that another one is still saving."""


@dataclass(frozen=True)
class Training(Task):
    """The task of making or continuing one run."""

    label: str
    parent: Path
    folder: Path | None
    """The folder of the run when it is to be continued."""
    variant: Variant
    seed: int
    device: str
    kind: str
    data: Data | None
    limits: Callable[..., Limits]
    recipe: str
    """The resolved recipe, with its seed, as the run's folder has it."""
    code: dict[str, str]
    """What a worker must have too: digests of ganlab and of plugins, the version of torch."""
    files: dict[str, bytes] | None
    """Of a task that brings its recipe with it: recipe and plugin files, by their paths from the
    folder of the recipe. None: the worker reads the recipe where the user has it."""
    cwd: Path
    """The folder in which the command was typed: the manifest has the commit of the code there."""
    ticket: Ticket | None
    """For a worker elsewhere: whether the task is still wanted."""
    run: dict[str, bytes] = field(default_factory=dict)
    """The files of the run's folder, of a packed task."""

    def train(
        self,
        device: str | None = None,
        called_off: Callable[[], bool] = lambda: False,
        send: Callable[[Sent], object] | None = None,
    ) -> Outcome:
        try:
            with self._variant() as variant:
                if send is None:
                    return self._seen(variant, device or self.device, called_off)
                return self._sent(variant, device or self.device, called_off, send)
        except Stopped as stopped:  # before its training began, or went on
            return Outcome(self.folder, stopped.exit_code, stopped_by=stopped.number)
        except Exception as error:
            lines = "".join(traceback.format_exception(error))
            if not isinstance(error, GanlabError) and self.files is not None:
                error = GanlabError(f"{socket.gethostname()}: {_line(error)}")
            vars(error)["traceback"] = lines  # it would be lost on the way from another process
            return Outcome(None, FAILED, _line(error), error)

    def packed(self) -> "Training":
        return replace(self, run=files_in(self.folder) if self.folder else {})

    def receiver(self) -> Receiver:
        return Receiver(self.parent, self.variant.name, self.folder)

    def _seen(self, variant: Variant, device: str, called_off: Callable[[], bool]) -> Outcome:
        """Make the run where the user will find it."""
        if self.ticket is None:
            return self._trained(variant, device, self.parent, self.folder, called_off)
        if not self.ticket.holds():
            where = f"{socket.gethostname()} does not see {self.ticket.path}"
            return Outcome(self.folder, SIGTERMED, where)
        (found,) = make_plan([variant], [self.seed], self.parent, device)
        if found.finished:  # by the worker that had it before
            return Outcome(found.folder, DONE)
        called_off = self.ticket.watched(called_off)
        return self._trained(variant, device, self.parent, found.folder, called_off)

    def _sent(
        self,
        variant: Variant,
        device: str,
        called_off: Callable[[], bool],
        send: Callable[[Sent], object],
    ) -> Outcome:
        """Make the run in a folder of this machine, and send its files."""
        with tempfile.TemporaryDirectory(prefix="ganlab-") as made:
            parent, folder, sender = Path(made), None, Sender(Path(made), send)
            if self.run:
                folder = parent / f"{variant.name}-1"
                write_files(folder, self.run)
                sender.know(folder)
            sender.start()
            try:
                outcome = self._trained(variant, device, parent, folder, called_off)
            finally:
                sender.finish()
            return replace(outcome, folder=None)

    def _trained(
        self,
        variant: Variant,
        device: str,
        parent: Path,
        going_on: Path | None,
        called_off: Callable[[], bool],
    ) -> Outcome:
        recipe = variant.recipe(self.seed)  # its code is that of the run, and may run here
        self._check(recipe, device)
        limits = self.limits(called_off=called_off)
        try:
            if going_on:
                folder, code = self._resumed(going_on, device, limits)
            else:
                folder, code = start(recipe, device, limits, parent, data=self.data)
        except Exception as error:
            (found,) = make_plan([variant], [self.seed], parent, device)
            if found.folder is None:  # it never began, and the others would not either
                raise
            return Outcome(found.folder, FAILED, _line(error))
        stopped = code in (SIGTERMED, INTERRUPTED)
        return Outcome(folder.path, code, stopped_by=heard() if stopped else None)

    def _resumed(self, path: Path, device: str, limits: Limits) -> tuple[RunFolder, int]:
        """Continue the run; the worker that had it before may still be saving it."""
        patience = LOCK_SECONDS if self.files is not None else 0.0
        deadline = time.monotonic() + patience
        while True:
            try:
                return resume(path, device, limits)
            except InUse:
                if time.monotonic() > deadline or limits():
                    raise

    @contextmanager
    def _variant(self) -> Iterator[Variant]:
        """Context with the variant; if the task brings its recipe along, that is written first."""
        if self.files is None:
            yield self.variant
            return
        self._check_code()
        with tempfile.TemporaryDirectory(prefix="ganlab-") as made:
            for name, content in self.files.items():
                file = Path(made, name)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            there = chdir(self.cwd) if self.cwd.is_dir() else nullcontext()
            # the user has consented to this very code where the command was typed
            with trusting_code(), there:
                yield replace(self.variant, file=Path(made, _TASK), overrides=())

    def _check_code(self) -> None:
        """Refuse a worker on which the run would be another one."""
        here = _code_here()
        for name, mine in here.items():
            if mine != self.code[name]:
                raise GanlabError(
                    f"{socket.gethostname()}: its {name} is not that of the machine on which the "
                    f"command was typed ({mine[:12]} and {self.code[name][:12]}); install the same "
                    "version on both"
                )

    def _check(self, recipe: Recipe, device: str) -> None:
        if resolved(recipe) != self.recipe:
            raise RecipeError(
                f"{recipe.file}: the recipe was changed since the comparison began; give the same "
                "command again, and it makes the runs of the new one"
            )
        plugins = _plugins(recipe)
        if other := [n for n, digest in plugins.items() if digest != self.code[f"plugin {n}"]]:
            raise GanlabError(
                f"{socket.gethostname()}: plugin {other[0]} has other code than it had when the "
                "command began"
            )
        if (found := pick_device(device).type) != self.kind:
            raise GanlabError(
                f"{socket.gethostname()}: --device {device} is {found} here, and not {self.kind}, "
                "on which the other runs compute; name the device"
            )


def task_of(job: Job, parent: Path, device: str, executor: Executor) -> Training:
    """The task for a job."""
    recipe, away = job.variant.recipe(job.seed), executor.elsewhere
    text = resolved(recipe)
    parent = parent.resolve() if away else parent
    return Training(
        label=str(job),
        parent=parent,
        folder=job.folder,
        variant=job.variant,
        seed=job.seed,
        device=device,
        kind=executor.kind(device),
        data=job.data,
        limits=job.limits,
        recipe=text,
        code=_code_here() | {f"plugin {n}": digest for n, digest in _plugins(recipe).items()},
        files=_files(recipe) if away else None,
        cwd=Path.cwd(),
        ticket=issue(parent, sha256(f"{job.variant.name}\n{text}")[:16]) if away else None,
    )


def _files(recipe: Recipe) -> dict[str, bytes]:
    """What a recipe is made of, in a form that does not depend on other files."""
    folder = recipe.file.resolve().parent
    beside = [source.file for source in recipe.sources.values() if source.beside_recipe]
    found = {file.relative_to(folder).as_posix(): file.read_bytes() for file in beside}
    return found | {_TASK: resolved(recipe, copied=False).encode()}


def _code_here() -> dict[str, str]:
    return {"ganlab": code_digest(), "torch": version("torch")}


def _plugins(recipe: Recipe) -> dict[str, str]:
    return {name: entry["sha256"] for name, entry in plugin_record(recipe).items()}


def _line(error: Exception) -> str:
    """An error in one line."""
    kind = "" if isinstance(error, GanlabError) else f"{type(error).__name__}: "
    return f"{kind}{error}".partition("\n")[0]
