"""TensorBoard: losses, figures, sample pictures and hyperparameters as event files."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import PrivateAttr

from ganlab import Tracked, Tracker


class TensorBoard(Tracker):
    """Shows the run in TensorBoard (Abadi et al. 2016, arXiv:1605.08695).

    The event files are in the run's folder, so `tensorboard --logdir runs` shows all runs.
    """

    package = "tensorboard"
    extra = "ganlab[tensorboard]"

    _writer: Any = PrivateAttr(None)

    def begin(self, run: Tracked) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self._writer = SummaryWriter(str(run.folder / "tensorboard"))
        if run.iteration == 0:
            for summary in hparams(run.settings, {run.best_metric: 0.0})[:2]:
                self._writer.file_writer.add_summary(summary)

    def log(self, iteration: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, iteration)

    def picture(self, iteration: int, file: Path) -> None:
        pixels = np.asarray(Image.open(file).convert("RGB"))
        self._writer.add_image("samples", pixels, iteration, dataformats="HWC")

    def flush(self) -> None:
        self._writer.flush()

    def end(self, state: str) -> None:
        self._writer.close()
