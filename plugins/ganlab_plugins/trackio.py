"""Trackio: losses, figures, sample pictures and settings in a local database."""

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr

from ganlab import Tracked, Tracker


class Trackio(Tracker):
    """Shows the run in Trackio (Hugging Face, 2025), which keeps everything on this machine.

    `trackio show --project ganlab` opens its page. Its database is in TRACKIO_DIR.
    """

    package = "trackio"
    extra = "ganlab[trackio]"

    project: str = "ganlab"
    """The project to which the run belongs."""

    _run: Any = PrivateAttr(None)

    def begin(self, run: Tracked) -> None:
        import trackio

        with redirect_stdout(io.StringIO()):  # what it says is no result of the command
            self._run = trackio.init(
                project=self.project,
                name=f"{run.name}-{run.id[:8]}",  # names of folders repeat
                config={**run.settings, "folder": str(run.folder)},
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log(self, iteration: int, figures: dict[str, float]) -> None:
        self._run.log(figures, step=iteration)

    def picture(self, iteration: int, file: Path) -> None:
        import trackio

        self._run.log({"samples": trackio.Image(str(file))}, step=iteration)

    def end(self, state: str) -> None:
        with redirect_stdout(io.StringIO()):
            self._run.finish()
