"""The base of plugins that show a run in another tool, such as TensorBoard."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from ganlab.plugin import Plugin, hookimpl

Setting = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Tracked:
    """A run that is tracked."""

    folder: Path
    """The run's folder."""
    id: str
    """The run's random id: the same in each sitting, and on each machine."""
    iteration: int
    """The iteration from which this sitting goes on; 0 at the run's start."""
    settings: dict[str, Setting] = field(default_factory=dict)
    """Every setting of the recipe: "batch_size", "gradient_penalty.weight". Lists are text."""
    best_metric: str = ""
    """The figure by which the best generator is kept, under its name in stats.jsonl."""

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.folder.name


class Tracker(Plugin):
    """Base of a plugin that shows a run in another tool while it goes on.

    Override the methods below. They are called in a thread of the tracker's own, never in training.
    The thread reads what the run writes into its folder, and hands it over. So no step waits for a
    tool, nothing is lost when it is slow, and no queue grows in memory. Only `ganlab run`, `resume`
    and what calls them have trackers; a check or a benchmark has none.

    An error in a method ends no run. It is told once, and the tracker gets nothing more in that
    sitting. Each line and picture is handed over once, also when a run is stopped or killed, and
    resumed. What was handed over before a run goes back to a checkpoint stays as it was.
    """

    observes: ClassVar[bool] = True

    package: ClassVar[str] = ""
    """The package that it needs, as in `import`; a run without it is refused."""
    extra: ClassVar[str] = ""
    """What to install for it: "ganlab[tensorboard]"."""

    @hookimpl
    def check_recipe(self) -> None:
        if self.package and find_spec(self.package) is None:
            raise self.error(f"needs the package {self.package}: pip install '{self.extra}'")

    def begin(self, run: Tracked) -> None:
        """Open the record of this run in the tool; the one from earlier sittings, if there is one.

        Import the package here.
        """

    def log(self, iteration: int, figures: dict[str, float]) -> None:
        """Take a line of stats.jsonl: losses, gradients, shares and health, or an evaluation.

        :param figures: "G/pixel_loss", "share/G/pixel_loss", "evaluation/psnr_y"; finite numbers.
            One iteration may have two lines, with other names.
        """

    def picture(self, iteration: int, file: Path) -> None:
        """Take a sample picture of an evaluation, a PNG file."""

    def flush(self) -> None:
        """Write what was taken so far; called after each round. The run then counts it as taken."""

    def end(self, state: str) -> None:
        """Close the record; the run is done, stopped, failed, diverged, or running on."""
