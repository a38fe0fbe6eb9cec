"""What a sitting says to the user: at its start, of changes, and at its end."""

import sys
from collections.abc import Sequence
from typing import Any

import torch

from ganlab.recipe.model import Recipe
from ganlab.requirements import warnings_of
from ganlab.run import Run, num_parameters
from ganlab.runs.environment import describe_environment
from ganlab.runs.folder import RunFolder
from ganlab.runs.journal import Journal
from ganlab.runs.means import told
from ganlab.runs.reading import read_json
from ganlab.runs.record import Change, read_record


def announce(run: Run, folder: RunFolder, journal: Journal) -> None:
    recipe = run.recipe
    counts = f"G {num_parameters(run.G):,} parameters" + (
        f", D {num_parameters(run.D):,}" if run.D else ""
    )
    journal.say(f"{recipe.name}: {run.device}, seed {recipe.seed}, {recipe.precision}, {counts}")
    journal.say("plugins: " + ", ".join(recipe.plugins))
    if recipe.precision == "bfloat16" and run.device.type != "cuda":
        journal.say("bfloat16 is for CUDA; running in float32 here")
    for warning in warnings_of(recipe):
        journal.say(f"warning: {warning}")
    for note in run.notes:
        journal.say(f"note: {note}")
    if run.iteration:
        journal.say(f"resuming at iteration {run.iteration}")
    journal.say(f"writing to {folder.path}")


def warn_of_changes(folder: RunFolder, recipe: Recipe) -> None:
    """Warn when versions or plugin code have changed since the run was started."""
    manifest: dict[str, Any] = read_json(folder.manifest)
    now = describe_environment(torch.device("cpu"))["versions"]
    for name, version in manifest.get("versions", {}).items():
        if now.get(name) != version:
            print(f"{name} was {version}, is now {now.get(name)}", file=sys.stderr)
    for name, record in manifest.get("plugins", {}).items():
        source = recipe.sources.get(name)
        if source and source.sha256 != record["sha256"]:
            print(f"plugin {name}: its code has changed since the run started", file=sys.stderr)


def tell_changes(changes: Sequence[Change]) -> None:
    for change in changes:
        print(f"changed {change}", file=sys.stderr)
    if any(change.key == "iterations" for change in changes):
        print(
            "schedules are not stretched: each keeps its own length, and stays at its end after it",
            file=sys.stderr,
        )


def summary(folder: RunFolder) -> str:
    """The text that a sitting prints on stdout at its end: scores beside bicubic, run folder."""
    status = folder.read_status()
    state, message = status.get("state", "unknown"), status.get("message", "")
    lines = [f"{state} at iteration {status.get('iteration')} of {status.get('of')}"]
    if state == "done" and message:
        lines.append(message)
    scores, bicubic = status.get("scores") or {}, status.get("bicubic") or {}
    if scores:
        title, rival = ("held-out images", "bicubic") if bicubic else ("scores", "")
        width = max(len(name) for name in (title, *scores)) + 2
        lines.append(f"{title:<{width}}{'generator':>10}{rival:>10}".rstrip())
        for name, value in scores.items():
            beside = f"{bicubic[name]:>10.4g}" if name in bicubic else ""
            lines.append(f"{name:<{width}}{value:>10.4g}{beside}")
    if without := status.get("left_out"):
        lines.append(f"left out of the means, since not finite: {told(without)}")
    elif not scores and "held_out" not in read_json(folder.manifest).get("data", {"held_out": 0}):
        lines.append("no scores and no pictures: no image was held out, and no plugin evaluates")
    for role, count in (status.get("skipped") or {}).items():
        lines.append(f"skipped: {count:,} steps of {role}, since a number was not finite")
    if times := status.get("rolled_back"):
        lines.append(f"rolled back: {times:,} times, since a number was not finite")
    verdicts = status.get("verdicts") or []
    lines += [f"verdict: {sentence}" for sentence in verdicts]
    lines += [f"changed {change}" for change in read_record(folder.path).changes]
    if state == "diverged" and not any(message in one for one in verdicts):
        lines.append(f"diverged: {message}")  # exploded had been told before
    lines.append(f"run folder: {folder.path}")
    return "\n".join(lines)
