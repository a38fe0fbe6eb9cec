"""List the installed plugins with their options, and the runs with their scores."""

import inspect
from functools import cache
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined
from rich.table import Table

from ganlab import hookspecs
from ganlab.commands.limits import Limits, limits_of
from ganlab.errors import RecipeError
from ganlab.monitoring.blame import described
from ganlab.plugin import Plugin
from ganlab.recipe.discovery import find_plugin, installed
from ganlab.recipe.file import did_you_mean
from ganlab.runs.folder import RunFolder, enlarges
from ganlab.runs.links import plain_runs
from ganlab.runs.reading import read_json
from ganlab.runs.record import check_recipe, read_record
from ganlab.schedule import Schedule
from ganlab.terminal import Terminal
from ganlab.toolbox.tracker import Tracker

# the kind of a plugin is that of the first hook in this list that it implements
_KIND_OF_HOOK = {
    "sample_real": "data",
    "make_generator": "generators",
    "make_discriminator": "discriminators",
    "degrade": "degradations",
    "discriminator_loss": "objectives",
    "penalty": "penalties",
    "augment": "what the discriminator sees",
    "labels": "what the discriminator sees",
    "generator_loss": "losses of the generator",
    "score_images": "metrics",
    "evaluate": "metrics",
}
KINDS = tuple(dict.fromkeys([*_KIND_OF_HOOK.values(), "training", "trackers"]))
"""The kinds of plugins, in the order in which they are listed."""
HOOKS = tuple(n for n, f in vars(hookspecs).items() if hasattr(f, "ganlab_spec"))


def describe_plugins(name: str | None = None, hook: str | None = None) -> list[dict[str, Any]]:
    """Each installed plugin: name, kind, summary, docstring, options, hooks, distribution.

    :raises RecipeError: for a plugin or a hook that does not exist.
    """
    if hook is not None and hook not in HOOKS:
        raise RecipeError(f"--hook {hook}: no such hook{did_you_mean(hook, HOOKS)}")
    if name is not None and name not in installed():
        raise RecipeError(f"no plugin named '{name}'{did_you_mean(name, installed())}")
    if name is not None:
        return [_described(name)]
    found = [_described(each) for each in sorted(installed()) if each not in broken_plugins()]
    return [plugin for plugin in found if hook is None or hook in plugin["hooks"]]


@cache
def broken_plugins() -> dict[str, str]:
    """The installed plugins that cannot be described, each with the reason in one line."""
    found = {}
    for name in sorted(installed()):
        try:
            _described(name)
        except RecipeError as error:
            found[name] = str(error).removeprefix(f"{_HERE}: ")
    return found


_HERE = "ganlab plugins"


def _described(name: str) -> dict[str, Any]:
    plugin, source = find_plugin(name, _HERE)
    hooks = [h for h in HOOKS if hasattr(getattr(plugin, h, None), "ganlab_impl")]
    text = inspect.getdoc(plugin) or ""
    try:
        kind, options = _kind(plugin, hooks), _options(plugin)
    except Exception as error:  # the class is a stranger's
        raise RecipeError(
            f"{_HERE}: plugin '{name}' of {source.distribution} {source.version} cannot be "
            f"described: {described(error)}"
        ) from error
    return {
        "name": name,
        "kind": kind,
        "summary": text.partition("\n")[0],
        "docstring": text,
        "options": options,
        "hooks": hooks,
        "distribution": source.distribution,
        "version": source.version,
    }


def _kind(plugin: type[Plugin], hooks: list[str]) -> str:
    if issubclass(plugin, Tracker):
        return "trackers"
    wraps = {hook for hook in hooks if getattr(plugin, hook).ganlab_impl["wrapper"]}
    for hook, kind in _KIND_OF_HOOK.items():
        # chained hooks are always wrappers; a wrapper of discriminator_loss is not an objective
        if hook in hooks and (hook not in wraps or hook != "discriminator_loss"):
            return kind
    return "what the discriminator sees" if "discriminator_loss" in wraps else "training"


def _options(plugin: type[Plugin]) -> list[dict[str, Any]]:
    limits = limits_of(plugin)
    options = []
    for name, field in plugin.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, Schedule):
            default = default.model_dump()
        options.append(
            {
                "name": name,
                "required": field.is_required(),
                "default": None if default is PydanticUndefined else default,
                "schedule": Schedule in _parts(field.annotation),
                "bounds": limits[field.alias or name],
                "description": " ".join((field.description or "").split()),
            }
        )
    return options


def _parts(annotation: Any) -> set[Any]:
    return {annotation, *getattr(annotation, "__args__", ())}


def show(found: list[dict[str, Any]], whole: bool) -> None:
    """Print plugins: one line for each, or everything about them when `whole`."""
    console = Terminal(soft_wrap=whole)
    if not whole:
        for kind in KINDS:
            table = Table(box=None, pad_edge=False, show_header=False)
            table.add_column(no_wrap=True, min_width=max(len(p["name"]) for p in found))
            table.add_column()
            for plugin in found:
                if plugin["kind"] == kind:
                    table.add_row(plugin["name"], plugin["summary"])
            if table.row_count:
                console.print(kind, style="bold")
                console.print(table)
                console.print()
        return
    for plugin in found:
        console.print(plugin["docstring"])
        console.print(f"\nhooks: {', '.join(plugin['hooks'])}")
        console.print(f"from: {plugin['distribution']} {plugin['version']}")
        console.print("\noptions:" if plugin["options"] else "\nno options")
        for option in plugin["options"]:
            default = "required" if option["required"] else f"= {toml(option['default'])}"
            limits = ", ".join(filter(None, [default, in_words(option["bounds"])]))
            changes = " (may be a schedule)" if option["schedule"] else ""
            console.print(f"  {option['name']} {limits}{changes}")
            console.print(f"      {option['description']}")


def in_words(limits: Limits) -> str:
    """Limits as a part of a sentence: `at least 0, at most 1`."""
    return ", ".join(v if w == "rule" else f"{w} {toml(v)}" for w, v in limits.items())


def toml(value: Any) -> str:
    """A value as it is written in a recipe; "(none)" for None, which a recipe leaves out."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else "(none)" if value is None else str(value)


def describe_runs(parent: Path) -> list[dict[str, Any]]:
    """Each run folder under a folder: name, when it began, how it ended, last scores."""
    found = []
    for path in plain_runs(parent):
        folder = RunFolder(path)
        manifest = read_json(folder.manifest)
        status = folder.read_status() | _changes(path)
        run = {"run": str(path), "state": status.get("state", "unknown")}
        run |= {key: manifest[key] for key in ("begun", "seed") if key in manifest}
        found.append(run | status)
    return found


def _changes(path: Path) -> dict[str, Any]:
    """What was changed in a run since its start, and a fault of its record, if there is any."""
    try:
        check_recipe(path)
        changes = [f"changed {change}" for change in read_record(path).changes]
    except RecipeError as error:
        return {"fault": str(error)}
    return {"changes": changes} if changes else {}


def next_for(run: str) -> tuple[str, ...]:
    """The arguments of a command that works on a run as it is now, and is useful next."""
    folder = RunFolder(Path(run))
    state = folder.read_status().get("state", "unknown")
    if state == "running" and folder.is_in_use():
        return "report", run
    if state in ("diverged", "failed"):
        return "check", str(folder.recipe)
    if state != "done":  # stopped, or killed
        return "resume", run
    if enlarges(folder) and folder.weights().is_file():
        return "eval", run, "--data", "FOLDER"
    return "report", run


def show_runs(found: list[dict[str, Any]], parent: Path) -> None:
    console = Terminal()
    if not found:
        console.print(f"no runs under {parent}")
        return
    table = Table("run", "state", "iteration", "psnr_y", "bicubic", "seconds", box=None)
    for run in found:
        scores, bicubic = run.get("scores") or {}, run.get("bicubic") or {}
        table.add_row(
            run["run"],
            run["state"],
            f"{run.get('iteration', '?')}/{run.get('of', '?')}",
            f"{scores['psnr_y']:.2f}" if "psnr_y" in scores else "",
            f"{bicubic['psnr_y']:.2f}" if "psnr_y" in bicubic else "",
            f"{run.get('seconds', 0):.0f}",
        )
    console.print(table)
    for run in found:
        for words in (*run.get("changes", ()), *filter(None, [run.get("fault")])):
            console.print(f"{run['run']}: {words}", soft_wrap=True)
