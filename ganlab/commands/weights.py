"""`ganlab weights`: the published files of weights that installed plugins can read."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ganlab.commands.fetch import fetch, is_there, require_consent, size_of, told
from ganlab.errors import RecipeError
from ganlab.published import PublishedFile
from ganlab.recipe.discovery import find_plugin, installed
from ganlab.recipe.file import did_you_mean
from ganlab.toolbox.weights import weights_file


@dataclass(slots=True)
class Weights:
    """A published file, and the plugins that can read it."""

    file: PublishedFile
    plugins: list[str] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """Its place in ganlab's cache folder."""
        return weights_file(self.file.file_name)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.file.name,
            "file": self.file.file_name,
            "size": self.file.size or None,
            "licence": self.file.licence,
            "source": self.file.source,
            "sha256": self.file.sha256 or None,
            "plugins": self.plugins,
            "path": str(self.path),
            "is_there": self.path.is_file(),
        }


@cache
def declared() -> list[Weights]:
    """Every file that an installed plugin declares, sorted by name."""
    found: dict[str, Weights] = {}
    for plugin, files in _by_plugin().items():
        for file in files:
            found.setdefault(file.source, Weights(file)).plugins.append(plugin)
    return sorted(found.values(), key=lambda weights: weights.file.name)


@cache
def _by_plugin() -> dict[str, tuple[PublishedFile, ...]]:
    """The files that each plugin declares, the one it reads by default first."""
    found = {}
    for name in sorted(installed()):
        try:
            files = find_plugin(name, "ganlab weights")[0].published
        except RecipeError:  # `ganlab plugins` tells why it cannot be imported
            continue
        if files:
            found[name] = files
    return found


def lines(listed: list[Weights]) -> Iterator[str]:
    """The files for people: name, size, whether it is here, and for which plugins."""
    for weights in listed:
        here = "here" if weights.path.is_file() else "-"
        size = size_of(weights.file.size)
        yield f"{weights.file.name:11} {size:>13}  {here:5} {', '.join(weights.plugins)}"
        yield f"{'':11} {weights.file.licence}"


def fetch_weights(names: tuple[str, ...], is_consented: bool) -> Iterator[str]:
    """Fetch files into the cache folder; yields lines for the user.

    :param names: of files, or of plugins: a plugin stands for the file that it reads by default.
    :raises RecipeError: for a name that nothing has.
    """
    wanted = {weights.path: weights for weights in map(_named, names)}
    lacking = []
    for path, weights in wanted.items():
        if is_there(weights.file, path):
            yield f"{path}: is there already"
            continue
        lacking.append(weights)
        yield from told(weights.file, path)
        yield f"  for:     {', '.join(weights.plugins)}"
    require_consent([weights.file.size for weights in lacking], is_consented or not lacking)
    for weights in lacking:
        digest = fetch(weights.file, weights.path)
        yield f"{weights.path}: fetched, sha256 {digest}"


def _named(name: str) -> Weights:
    word = name.lower()
    sources = {file[0].source for plugin, file in _by_plugin().items() if plugin == word}
    sources |= {w.file.source for w in declared() if word in (w.file.name, w.file.file_name)}
    if len(sources) > 1:
        raise RecipeError(f"'{name}' is the name of several files: {' and '.join(sorted(sources))}")
    for weights in declared():
        if weights.file.source in sources:
            return weights
    known = {weights.file.name for weights in declared()} | _by_plugin().keys()
    raise RecipeError(
        f"no weights are named '{name}'{did_you_mean(word, known) or '.'} "
        "`ganlab weights list` shows what there is"
    )
