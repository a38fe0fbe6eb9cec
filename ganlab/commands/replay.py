"""`ganlab replay`: take the iteration of a bundle again, without the training data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ganlab.assembly import assemble
from ganlab.failures.bundle import Bundle, read_bundle
from ganlab.failures.examination import Examination, Fault
from ganlab.recipe.model import load_recipe
from ganlab.run import Eager
from ganlab.speed.device import pick_device
from ganlab.state import restore


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of an iteration that was taken again."""

    bundle: Bundle
    fault: Fault | None
    """What is not finite now; None when all is finite."""
    seen: list[str]
    """All that was not finite, in the order in which it arose."""

    @property
    def reproduced(self) -> bool:
        """Whether the same tensor is not finite, in the same step."""
        recorded, now = Fault(self.bundle.what, self.bundle.step), self.fault
        return now is not None and (now.step, now.tensor) == (recorded.step, recorded.tensor)


def replay_bundle(folder: Path, device: str) -> Replayed:
    """Take the iteration of a bundle again, step by step, and look at each number.

    :raises RecipeError: when it is no bundle, when its code may not run, or when a file is missing
        that its plugins read (weights; the training data are not needed).
    """
    bundle = read_bundle(folder)
    recipe = load_recipe(folder / "recipe.toml", ["watch_every=0"])
    run = assemble(recipe, pick_device(device), given=bundle.batches)
    restore(run, bundle.state, folder)
    run.execution, run.share_forward = Eager(), False
    run.given = [batch.to(run.device) for batch in bundle.batches]
    examination = Examination(run)
    fault = examination.of_an_iteration()
    return Replayed(bundle, fault, examination.seen)


def lines(replayed: Replayed) -> list[str]:
    """What came of it, for the user."""
    bundle, fault = replayed.bundle, replayed.fault
    told = [f"iteration {bundle.iteration:,}, recorded: {_named(bundle.step, bundle.what)}"]
    told += [f"sample: {sample}" for sample in bundle.samples]
    told += [f"not finite: {one}" for one in replayed.seen]
    now = _named(fault.step, fault.what) if fault else "all numbers are finite"
    told.append(f"taken again: {now}")
    told.append("reproduced" if replayed.reproduced else "not reproduced: this is another result")
    return told


def as_data(replayed: Replayed) -> dict[str, Any]:
    """The same as data."""
    bundle, fault = replayed.bundle, replayed.fault
    return {
        "iteration": bundle.iteration,
        "recorded": {"step": bundle.step, "what": bundle.what},
        "samples": bundle.samples,
        "not_finite": replayed.seen,
        "again": {"step": fault.step, "what": fault.what} if fault else None,
        "reproduced": replayed.reproduced,
    }


def _named(step: str, what: str) -> str:
    return f"{step}: {what}" if step else what
