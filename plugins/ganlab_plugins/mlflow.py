"""MLflow: losses, figures, sample pictures and settings in its file store."""

import os
import re
import time
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr

from ganlab import RecipePath, Tracked, Tracker

MOST_PARAMETERS = 100  # in one call
_STATUS = {"done": "FINISHED", "stopped": "KILLED", "running": "RUNNING"}


class MLflow(Tracker):
    """Shows the run in MLflow (Zaharia et al. 2018, "Accelerating the machine learning lifecycle").

    It writes files only; `mlflow ui --backend-store-uri runs/mlruns` shows them.
    """

    package = "mlflow"
    extra = "ganlab[mlflow]"

    path: RecipePath | None = None
    """The folder of its file store; by default `mlruns` beside the run's folder."""
    experiment: str = "ganlab"
    """The experiment to which the run belongs."""

    _client: Any = PrivateAttr(None)
    _run: str = PrivateAttr("")
    _waiting: list[Any] = PrivateAttr(default_factory=list)

    def begin(self, run: Tracked) -> None:
        # MLflow keeps its file store as it is, and asks for the first word; without the second it
        # reports its use to its makers
        for word in ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_DISABLE_TELEMETRY"):
            os.environ.setdefault(word, "true")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        store = self.path or run.folder.parent / "mlruns"
        client = self._client = MlflowClient(store.absolute().as_uri())
        known = client.get_experiment_by_name(self.experiment)
        experiment = known.experiment_id if known else client.create_experiment(self.experiment)
        earlier = client.search_runs([experiment], f"tags.`ganlab.id` = '{run.id}'")
        if earlier:
            self._run = earlier[0].info.run_id
            client.update_run(self._run, "RUNNING")
            return
        tags = {"ganlab.id": run.id, "ganlab.folder": str(run.folder)}
        self._run = client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
        settings = [Param(name, str(value)) for name, value in run.settings.items()]
        for first in range(0, len(settings), MOST_PARAMETERS):
            client.log_batch(self._run, params=settings[first : first + MOST_PARAMETERS])

    def log(self, iteration: int, figures: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting += [Metric(_name(n), value, now, iteration) for n, value in figures.items()]
        if len(self._waiting) > 500:
            self.flush()

    def picture(self, iteration: int, file: Path) -> None:
        self._client.log_artifact(self._run, str(file), "samples")

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for first in range(0, len(waiting), 1000):  # the most that one call takes
            self._client.log_batch(self._run, metrics=waiting[first : first + 1000])

    def end(self, state: str) -> None:
        self._client.set_terminated(self._run, _STATUS.get(state, "FAILED"))


def _name(figure: str) -> str:
    """A figure's name as MLflow takes it: "cosine/G/a,G/b" becomes "cosine/G/a:G/b"."""
    return re.sub(r"[^\w\-. :/]", "_", figure.replace(",", ":"), flags=re.ASCII)
