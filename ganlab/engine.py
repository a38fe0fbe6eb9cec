"""The training loop: iterations, and the work between them: saving, evaluation, verdicts."""

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from time import perf_counter

from torch import Tensor, nn

from ganlab.checkpoint import Keep, checkpoints_of, roll_back, write_checkpoint
from ganlab.errors import Diverged, RecipeError
from ganlab.evaluation.health import game_health
from ganlab.evaluation.samples import write_samples
from ganlab.evaluation.scores import Evaluation, eval_mode, evaluate_generator
from ganlab.generator_weights import weights_of, write_weights
from ganlab.iteration import iterate
from ganlab.monitoring.loading import told_at_the_end
from ganlab.monitoring.verdicts import Verdict
from ganlab.ranks.agreement import compare_ranks
from ganlab.run import Run
from ganlab.runs.journal import Journal
from ganlab.runs.means import is_better
from ganlab.runs.pictures import keep_pictures
from ganlab.runs.writer import Writer
from ganlab.soundness import unsound_part
from ganlab.state import state_of
from ganlab.stopping import Stopped, released
from ganlab.system import keep_freed_memory, return_freed_memory


def train(
    run: Run,
    journal: Journal,
    writer: Writer,
    stop: Callable[[], str] = lambda: "",
    on_evaluation: Callable[[], None] = lambda: None,
) -> str:
    """Iterate until the recipe's end or until `stop()` gives a reason, and save the state.

    A run that was stopped before an evaluation that is due does it first.

    :param writer: writes files while training goes on. At the end it has written all and is closed.
    :param stop: returns "" to go on, or a reason to stop. After "signal" the state and the weights
        for use are saved; after any other reason the generator is also evaluated. A signal in the
        middle of an evaluation leaves it, and the run ends with "signal" too.
    :param on_evaluation: called after each planned evaluation.
    :returns: the reason; "" at the recipe's end, "verdict" when a verdict ended the run,
        "patience" when the recipe's `patience` did.
    :raises Diverged: when a loss or a weight is not finite. It is noticed at the next report,
        evaluation or checkpoint; `replay.find_cause` finds where it began.
    """
    keep_freed_memory()
    with closing(writer), run.execution.running():
        return Loop(run, journal, writer, on_evaluation).run_until(stop)


AGREE_EVERY = 50
"""Iterations between two comparisons of what several processes hold, where none is watched."""


@dataclass(slots=True)
class Loop:
    """Training, and the work between two iterations: checkpoints, evaluation, verdicts."""

    run: Run
    journal: Journal
    writer: Writer
    on_evaluation: Callable[[], None] = lambda: None
    saving: Future[None] | None = None
    """The checkpoint that is being written."""
    evaluated: int = -1
    """Iteration of the last evaluation, planned or not."""
    exported: int = -1
    """Iteration of the last weights for use."""
    saved: int = -1
    """Iteration of the last checkpoint."""
    stepping_seconds: float = 0.0
    """Time of all iterations of this sitting."""

    def run_until(self, stop: Callable[[], str]) -> str:
        """Train as `train` does, but return before all files are written."""
        run, recipe = self.run, self.run.recipe
        self.saved = first = run.iteration
        self.carry_on(recipe.on_failed_checkpoint == "carry on")
        notes_told = len(run.notes)
        reason = self.owed_evaluation() if owes_evaluation(run) else ""
        while (
            not reason
            and run.iteration < recipe.iterations
            # a first iteration is always taken: a run that has one can be stopped, saved and used
            and not (reason := self.out_of_patience() or (stop() if run.iteration else ""))
        ):
            began = perf_counter()
            losses = self.iterate()
            self.stepping_seconds += perf_counter() - began
            run.iteration += 1
            self.journal.record(run.iteration, losses, run.flags)
            for skip in run.skips:
                self.journal.skipped(skip)
            for note in run.notes[notes_told:]:
                self.journal.say(note)
            notes_told = len(run.notes)
            self.writer.check()  # a file that could not be written is told at once
            reason = self.after_iteration()
        self.settle()
        self.carry_on(False)  # what the run leaves behind must be there
        self.journal.append_waiting()
        self._save_once()
        if reason not in ("", "signal") and self.evaluated != run.iteration:
            reason = self.evaluate(planned=False) or reason
        if self.exported != run.iteration > 0:
            self.settle()  # its copy of the state is gone then
            self.export(run.hook.evaluation_generator(generator=run.G), "last")
        run.hook.run_end(run=run)
        self.tell_data_share(run.iteration - first)
        return reason

    def iterate(self) -> dict[str, Tensor]:
        """Take an iteration; when it fails, the losses before it are written first."""
        try:
            self.run.world.order("iterate")
            return iterate(self.run)
        except Diverged:
            self.journal.flush()
            raise

    def tell_data_share(self, iterations: int) -> None:
        """Say so when the data took much of the time of this sitting's iterations.

        Only on a CPU: other devices work on while the host goes on, so no such time is known.
        """
        run, steps = self.run, self.stepping_seconds
        assert run.folder
        if run.device.type == "cpu":
            told = told_at_the_end(run.sampling_seconds, steps, iterations, run.folder.recipe)
            if told:
                self.journal.say(told)

    def out_of_patience(self) -> str:
        """Give "patience" when the last `patience` evaluations brought no better figure, else "".

        Evaluations before the first step of D do not count. The answer depends on checkpointed
        state alone, so a resumed run ends at the same iteration.
        """
        recipe, progress = self.run.recipe, self.run.progress
        began = progress.game_began if recipe.d_steps else 0
        if not recipe.patience or began is None or progress.iteration % recipe.evaluate_every:
            return ""
        since = max(began, progress.best[0] if progress.best else 0)
        waited = progress.iteration - since
        return "patience" if waited >= recipe.patience * recipe.evaluate_every else ""

    def after_iteration(self) -> str:
        """Do what is due now; returns a reason to end the run, else ""."""
        run, number = self.run, self.run.iteration
        last = number == run.recipe.iterations
        if run.world.size > 1 and number % (run.recipe.watch_every or AGREE_EVERY) == 0:
            self._require_agreement()
        checkpoint_is_due = last or number % run.recipe.checkpoint_every == 0
        if owes_evaluation(run):
            if checkpoint_is_due:
                self.save()  # first: an evaluation may be stopped, or want too much memory
            return self.planned_evaluation()
        if not checkpoint_is_due:
            return ""
        # before the checkpoint, so that a run killed in between finds the same verdicts again
        found = self.find_verdicts()
        self.save()
        return self.act_on(found)

    def owed_evaluation(self) -> str:
        """The evaluation before which a run was stopped, as it would have been without the stop."""
        for plugin in self.run.recipe.plugins.values():
            plugin.advance(self.run.iteration - 1)  # the last iteration was that one
        return self.planned_evaluation()

    def planned_evaluation(self) -> str:
        """Evaluate as the recipe plans; returns a reason to end the run, else ""."""
        if self.evaluate():
            return "signal"
        found = self.find_verdicts()
        self.on_evaluation()
        return self.act_on(found)

    def act_on(self, found: list[Verdict]) -> str:
        """Do what the recipe wants at new verdicts; returns "verdict" when they end the run."""
        on_verdict = self.run.recipe.on_verdict
        if not found or on_verdict == "carry on":
            return ""
        if on_verdict == "roll back":
            self.roll_back(min(verdict.since for verdict in found))
        return "verdict"

    def evaluate(self, planned: bool = True) -> str:
        """Evaluate the generator; write its scores, weights and pictures.

        An evaluation that ends before its time, by a signal or an error, leaves the run as it was.
        It is saved then, and resumed, it does the evaluation first.

        :param planned: False for an extra evaluation of a run that was stopped early. It changes no
            state of the run, so that a resumed run equals an uninterrupted one.
        :returns: "signal" when a signal ended it, else "".
        """
        run, before = self.run, replace(self.run.progress)
        self._require_finite()
        self.settle()  # an evaluation takes memory, and the copy of a state too
        generator = run.hook.evaluation_generator(generator=run.G)
        return_freed_memory()  # its gaps are too small for the tensors of an evaluation
        try:
            with eval_mode(generator), released():
                run.world.order("evaluate", not run.progress.bicubic)
                found = evaluate_generator(run, generator)
                health = found.health | game_health(run, generator)
        except BaseException as error:
            run.progress = before
            with suppress(Exception):  # the first error is the one to tell
                self._save_once()
            if not isinstance(error, Stopped):
                raise
            self.journal.say(f"the evaluation was stopped at iteration {run.iteration}")
            return "signal"
        self._keep(found, health, generator, planned)
        return ""

    def _keep(
        self, found: Evaluation, health: dict[str, float], generator: nn.Module, planned: bool
    ) -> None:
        """Keep the results of an evaluation: in the run's progress, in files, in the journal."""
        run, folder = self.run, self.run.folder
        assert folder
        if found.images:
            path = folder.samples / f"{run.iteration:07d}.png"
            self.writer.later(write_samples, found.images, run.scale, path)
            self.writer.later(keep_pictures, folder.pictures, found.images, run.scale)
        run.progress.scores, run.progress.left_out = found.figures, found.left_out
        best = planned and self._is_best(found)
        self.export(generator, *(("last", "best") if best else ("last",)))
        if found.figures or found.left_out or health:
            told = (found.figures, found.scores, found.left_out, health)
            self.journal.evaluation(run.iteration, *told, planned)
        known = found.figures | found.left_out
        if known and self.evaluated < 0 and run.recipe.best_metric not in known:
            self.journal.say(
                f"warning: best_metric = '{run.recipe.best_metric}' has no effect: no evaluation "
                f"gives it, only {', '.join(known)}; no best generator is kept"
            )
        self.evaluated = run.iteration
        if planned:
            run.progress.evaluated = run.iteration

    def export(self, generator: nn.Module, *names: str) -> None:
        """Write the weights for use, as the "last" and perhaps the "best"."""
        assert self.run.folder
        weights = weights_of(self.run, generator)
        self.exported = self.run.iteration
        for name in names:
            self.writer.later(write_weights, weights, self.run.folder.weights(name))

    def _is_best(self, found: Evaluation) -> bool:
        """Whether this is the best evaluation so far; if so, it is kept as the best."""
        progress, recipe = self.run.progress, self.run.recipe
        metric = recipe.best_metric
        if recipe.patience and metric not in found.figures | found.left_out:
            raise RecipeError(
                f"{recipe.file}: patience = {recipe.patience} waits for a better {metric}, but the "
                f"evaluation has {', '.join(found.figures)}; set best_metric to one of these"
            )
        if metric not in found.figures:
            return False
        figure, scores = found.figures[metric], found.behind(metric)
        sign = 1 if recipe.best_is == "highest" else -1
        if progress.best and not is_better(
            figure, scores, progress.best[1], progress.best_scores, sign
        ):
            return False
        progress.best, progress.best_scores = (progress.iteration, figure), scores
        return True

    def find_verdicts(self) -> list[Verdict]:
        """Find the new verdicts; print and write each."""
        run, journal = self.run, self.journal
        journal.flush()
        found = [one for several in run.hook.verdicts(history=journal.history) for one in several]
        new = {v.name: v for v in reversed(found) if v.name not in journal.verdicts}
        for verdict in new.values():
            journal.verdict(run.iteration, verdict, run.recipe.on_verdict)
        return list(new.values())

    def save(self) -> None:
        """Checkpoint the run. It counts when the lines of the journal are on the disk, too."""
        assert self.run.folder
        self._require_finite()
        self._require_agreement()
        self.settle()  # one at a time: waiting states would fill the memory
        recipe, folder = self.run.recipe, self.run.folder.checkpoints
        keep = Keep(recipe.keep, recipe.keep_every)
        self.journal.append_waiting()
        self.run.progress.logs = self.journal.written()
        state, others = state_of(self.run), [self.journal.sync]
        self.saved = self.run.iteration
        self.saving = self.writer.later(write_checkpoint, state, folder, keep, others)

    def carry_on(self, carries_on: bool) -> None:
        """Set whether the run goes on when a file cannot be written, or ends."""
        self.writer.tolerate = self.tell_not_written if carries_on else None
        self.journal.carries_on = carries_on

    def tell_not_written(self, error: OSError) -> None:
        """Say that a file could not be written; it is tried again at the next one, or at the end.

        Called in the writer's thread.
        """
        self.saved = self.exported = -1
        self.journal.say(f"warning: {error}; the run carries on, and tries again at the next one")

    def settle(self) -> None:
        """Wait until the last checkpoint is on the disk, and its copy of the state is gone."""
        if self.saving:
            self.saving.result()
        self.saving = None

    def _save_once(self) -> None:
        """Checkpoint the run, unless this iteration has its checkpoint."""
        if self.saved != self.run.iteration:
            self.save()

    def roll_back(self, since: int) -> None:
        """Restore the state from before an iteration, if there is a checkpoint."""
        assert self.run.folder
        self.writer.wait()
        if not checkpoints_of(self.run.folder.checkpoints):
            self.journal.say("there is no checkpoint yet to roll back to; the run ends here")
            return
        self.saved = roll_back(self.run, self.run.folder.checkpoints, since)
        if self.run.world.size > 1:
            self.run.world.order("state", state_of(self.run))
        self.journal.say(f"rolled back to iteration {self.run.iteration}")

    def _require_agreement(self) -> None:
        """Check that all processes of the run hold the same state."""
        self.run.world.order("compare")
        compare_ranks(self.run)

    def _require_finite(self) -> None:
        """Check that losses and all that is kept are finite, before anything is saved.

        :raises Diverged: naming the first loss, or the part, that is not finite.
        """
        self.journal.flush()
        if part := unsound_part(self.run):
            raise Diverged(self.run.iteration, f"{part} not finite")


def owes_evaluation(run: Run) -> bool:
    """Whether an evaluation that the recipe plans at this iteration is not done yet."""
    recipe, number = run.recipe, run.iteration
    ends = {recipe.iterations, *run.former_ends}
    planned = number in ends or number % recipe.evaluate_every == 0
    return planned and run.progress.evaluated < number
