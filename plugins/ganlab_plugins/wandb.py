"""Weights & Biases: losses, figures, sample pictures and settings, offline."""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import PrivateAttr

from ganlab import Tracked, Tracker


class Wandb(Tracker):
    """Shows the run in Weights & Biases (Biewald 2020, "Experiment tracking"), offline.

    It writes into the run's folder, and opens no connection: `wandb sync` uploads what it wrote,
    the sittings of a run as one. With `mode = "online"` it uploads while the run goes on.
    """

    package = "wandb"
    extra = "ganlab[wandb]"

    project: str = "ganlab"
    """The project to which the run belongs."""
    mode: Literal["offline", "online"] = "offline"
    """Whether it writes files only, or also uploads them."""

    _run: Any = PrivateAttr(None)
    _waiting: list[Any] = PrivateAttr(default_factory=list)

    def begin(self, run: Tracked) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else it reports its own errors
        import wandb

        quiet = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False)
        self._run = wandb.init(
            project=self.project,
            id=run.id,
            name=run.name,
            dir=str(run.folder),
            mode=self.mode,
            resume="allow" if self.mode == "online" else None,  # offline, `wandb sync` joins them
            config=run.settings,
            settings=quiet,
        )

    def log(self, iteration: int, figures: dict[str, float]) -> None:
        self._run.log({**figures, **self._samples()}, step=iteration)

    def picture(self, iteration: int, file: Path) -> None:
        import wandb

        # it waits for the next line: a row of its own would end that of an iteration too early,
        # and wandb drops what comes for an earlier iteration
        self._waiting.append(wandb.Image(str(file), caption=f"iteration {iteration:,}"))

    def end(self, state: str) -> None:
        if samples := self._samples():
            self._run.log(samples)
        self._run.summary["state"] = state
        self._run.finish()

    def _samples(self) -> dict[str, Any]:
        waiting, self._waiting = self._waiting, []
        return {"samples": waiting} if waiting else {}
