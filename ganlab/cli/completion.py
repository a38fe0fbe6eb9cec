"""`ganlab completion`: TAB in bash, zsh and fish knows recipes, runs, plugins and `--set` keys.

Imports no torch: options are read from the source of plugins (`recipe/outline.py`).
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    split_arg_string,
)

if TYPE_CHECKING:
    from ganlab.recipe.outline import Outline

# Each differs from click's script in two things. No space follows what ends in "=" or "/". And
# messages for the terminal are dropped, which would stand in the line that is being typed.
_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' reply type value line="${COMP_LINE:0:COMP_POINT}"
    reply=$(env COMP_WORDS="$line" %(complete_var)s=bash_complete $1 2>/dev/null)
    COMPREPLY=()
    for reply in $reply; do
        type=${reply%%%%,*}
        value=${reply#*,}
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            *) COMPREPLY+=("$value") ;;
        esac
    done
    [[ ${COMPREPLY[0]} == *[=/] ]] && compopt -o nospace
    return 0
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""
_ZSH = """\
#compdef %(prog_name)s
%(complete_func)s() {
    local -a plain described response space
    (( ! $+commands[%(prog_name)s] )) && return 1
    response=("${(@f)$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) \\
        %(complete_var)s=zsh_complete %(prog_name)s 2>/dev/null)}")
    for type key descr in ${response}; do
        case $type in
            dir) _path_files -/ ;;
            file) _path_files -f ;;
            *)
                [[ $key == *[=/] ]] && space=(-S '')
                if [[ $descr == _ ]]; then plain+=("$key"); else described+=("$key":"$descr"); fi ;;
        esac
    done
    [[ -n $described ]] && _describe -V unsorted described -U "${space[@]}"
    [[ -n $plain ]] && compadd -U -V unsorted "${space[@]}" -a plain
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""
_FISH = """\
function %(complete_func)s
    set -l response (env %(complete_var)s=fish_complete COMP_WORDS=(commandline -cp) \\
        COMP_CWORD=(commandline -t) %(prog_name)s 2>/dev/null)
    for completion in $response
        set -l metadata (string split "," $completion)
        switch $metadata[1]
            case dir
                __fish_complete_directories $metadata[2]
            case file
                __fish_complete_path $metadata[2]
            case plain
                echo $metadata[2]
        end
    end
end
complete --no-files --command %(prog_name)s --arguments "(%(complete_func)s)"
"""


class _Bash(BashComplete):
    """Bash cuts words at "=", ":" and "@" too; here a word ends at a space, as in other shells."""

    source_template = _BASH

    @staticmethod
    def _check_version() -> None:
        """Nothing: the script works in every bash that knows `compopt`."""

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ["COMP_WORDS"]
        words = split_arg_string(line)
        incomplete = words.pop() if words and not line[-1:].isspace() else ""
        self._begun = max(incomplete.rfind(character) for character in "=:@") + 1
        return words[1:], incomplete

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type},{item.value[self._begun :]}"


class _Zsh(ZshComplete):
    source_template = _ZSH


class _Fish(FishComplete):
    source_template = _FISH


_SHELLS: dict[str, type[ShellComplete]] = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}
for _shell, _class in _SHELLS.items():
    add_completion_class(_class, _shell)


@click.command()
@click.argument("shell", type=click.Choice([*_SHELLS]))
def completion(shell: str) -> None:
    """Print the script by which TAB completes commands, recipes, runs, plugins and --set keys.

    \b
    bash: eval "$(ganlab completion bash)" in ~/.bashrc
    zsh:  eval "$(ganlab completion zsh)" in ~/.zshrc, after compinit
    fish: ganlab completion fish > ~/.config/fish/completions/ganlab.fish

    Example: ganlab completion bash
    """
    program = click.get_current_context().find_root().command
    made = _SHELLS[shell](program, {}, "ganlab", "_GANLAB_COMPLETE")
    click.echo(made.source(), nl=False)


def recipe_items(incomplete: str) -> list[CompletionItem]:
    """Recipe files and folders where the user is typing, and the recipes that come with ganlab."""
    return [*toml_items(incomplete), *bundled_items(incomplete)]


def toml_items(incomplete: str) -> list[CompletionItem]:
    """TOML files and folders where the user is typing."""
    return [*map(CompletionItem, _files(incomplete))]


def bundled_items(incomplete: str) -> list[CompletionItem]:
    """The names of the recipes that come with ganlab."""
    from ganlab.recipe.bundled import bundled

    return [CompletionItem(name) for name in _beginning(bundled(), incomplete)]


def data_set_items(incomplete: str) -> list[CompletionItem]:
    """The names of the sets of images that `ganlab data fetch` knows."""
    from ganlab.published import data_sets

    return [CompletionItem(name) for name in _beginning(data_sets(), incomplete)]


def _files(incomplete: str) -> Iterator[str]:
    """The folders and .toml files that a path may go on with, folders with "/"."""
    typed = incomplete.rpartition("/")
    folder = Path(typed[0] + typed[1])
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        name = f"{path.name}/" if path.is_dir() else path.name
        hidden = name.startswith(".") and not typed[2].startswith(".")
        if name.startswith(typed[2]) and not hidden and name.endswith((".toml", "/")):
            yield typed[0] + typed[1] + name


def run_items(context: click.Context, incomplete: str) -> list[CompletionItem]:
    """The names of runs, and @last; of another folder than runs/ by their paths."""
    from ganlab.runs.reference import LAST, runs_in

    parent, slash, begun = incomplete.rpartition("/")
    folder = Path(parent + slash) if slash else Path(context.params.get("parent") or "runs")
    names = [run.name for run in runs_in(folder)][::-1]
    found = _beginning([*names, *([LAST] if names else [])], begun)
    return [CompletionItem(parent + slash + name) for name in found]


def plugin_items(incomplete: str) -> list[CompletionItem]:
    """The names of installed plugins."""
    return [CompletionItem(name) for name in _beginning(sorted(_plugins()), incomplete)]


def recipe_plugin_items(context: click.Context, incomplete: str) -> list[CompletionItem]:
    """The names of the plugins in the recipe that the line names."""
    return [CompletionItem(name) for name in _beginning(_plugins_of(context), incomplete)]


def set_items(context: click.Context, incomplete: str) -> list[CompletionItem]:
    """What `--set` may change: settings, and options of the recipe's plugins; then their values."""
    from ganlab.recipe.outline import options_of

    key = incomplete.partition("=")[0]
    keys = {option.name: option for option in options_of("ganlab.recipe.model", "Recipe")}
    points = _plugins()
    for name, use in _plugins_of(context).items():
        near = name.startswith(key) or key.startswith(f"{name}.")
        if near and use in points:
            module, _, kind = points[use].partition(":")
            keys |= {f"{name}.{one.name}": one for one in options_of(module, kind)}
    return _option_items(keys, incomplete)


def _option_items(keys: Mapping[str, "Outline"], incomplete: str) -> list[CompletionItem]:
    """The options of these names; after the "=", the values of one."""
    key, equals, _ = incomplete.partition("=")
    if equals:
        choices = keys[key].choices if key in keys else ()
        return [CompletionItem(v) for v in _beginning([f"{key}={c}" for c in choices], incomplete)]
    return [CompletionItem(f"{k}=", help=keys[k].meaning) for k in _beginning(keys, incomplete)]


_EXECUTORS = {"local": "ganlab.compare.local:Local"}


def executor_items(incomplete: str) -> list[CompletionItem]:
    """The names of the executors that are installed."""
    return [CompletionItem(name) for name in _beginning(sorted(_executors()), incomplete)]


def executor_option_items(context: click.Context, incomplete: str) -> list[CompletionItem]:
    """What `--executor-option` may set for the executor that the line names; then its values."""
    from ganlab.recipe.outline import options_of

    value = _executors().get(context.params.get("executor") or "local", "")
    module, _, kind = value.partition(":")
    keys = {option.name: option for option in options_of(module, kind)} if value else {}
    return _option_items(keys, incomplete)


def _executors() -> dict[str, str]:
    """The executors: name -> "module:class"."""
    from ganlab.registry import entry_points

    return {p.name: p.value for p in entry_points("ganlab.executors")} | _EXECUTORS


def _recipe(context: click.Context) -> Path:
    """The recipe file of a command line: the one that is named first, or that of a run.

    :raises GanlabError: when there is none.
    """
    from ganlab.recipe.bundled import find_recipe
    from ganlab.runs.reference import find_run

    first = context.command.params[0].name or ""
    given = context.params.get(first)
    # after `--set` without its value, click leaves the arguments unread
    named = (given[0] if isinstance(given, tuple) else given) or next(iter(context.args), "")
    if isinstance(context.command.params[0].type, click.Path) and not Path(named).is_dir():
        return find_recipe(named)
    if str(named).endswith(".toml"):
        return Path(named)
    return find_run(str(named)) / "recipe.toml"


def _plugins_of(context: click.Context) -> dict[str, str]:
    """The plugins of a command line's recipe by the key that names them; {} without a recipe."""
    from ganlab.errors import GanlabError
    from ganlab.recipe.file import read_recipe

    try:
        tables = read_recipe(_recipe(context)).values.get("plugins", {})
    except GanlabError:
        return {}
    return {
        name: str(table.get("use", name)) for name, table in tables.items()
        if isinstance(table, dict)
    }  # fmt: skip


def _plugins() -> dict[str, str]:
    """The installed plugins: name -> "module:class"."""
    from ganlab.registry import entry_points

    return {point.name: point.value for point in entry_points("ganlab")}


def _beginning(names: Any, incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
