"""The page of a run that goes on."""

import math
import time

from ganlab.runs.folder import RunFolder
from ganlab.runs.journal import Journal


class Page:
    """The run's report, rewritten after evaluations as long as that takes little time."""

    def __init__(self, folder: RunFolder, journal: Journal) -> None:
        self.folder, self.journal = folder, journal
        self._took, self._ended = 0.0, -math.inf

    def renew(self) -> None:
        """Write the page, unless that would take more than a hundredth of the training time."""
        if time.monotonic() - self._ended > 100 * self._took:
            self.write()

    def write(self) -> None:
        """Write the page. If that fails, the fault is printed and training goes on."""
        from ganlab.report import report_run  # imported late, since the import takes a second

        began = time.monotonic()
        try:
            report_run(self.folder.path)
        except Exception as error:  # a fault in the page must not end the run
            self.journal.say(f"{self.folder.report}: not written: {type(error).__name__}: {error}")
        self._ended = time.monotonic()
        self._took = self._ended - began
