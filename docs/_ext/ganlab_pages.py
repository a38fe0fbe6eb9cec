"""What the library says about itself, as pages: hooks, plugins, settings, commands; the notebook.

Everything is read from the code when the site is built, so that no page can be out of date.
"""

import inspect
import json
import re
from collections.abc import Iterator
from typing import Any, get_type_hints

import click
from docutils import nodes
from myst_parser.parsers.sphinx_ import MystParser
from pydantic import BaseModel
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective

from ganlab import hookspecs
from ganlab.cli import main
from ganlab.cli.added import added, load
from ganlab.commands.describe import HOOKS, KINDS, describe_plugins
from ganlab.commands.schema import recipe_schema
from ganlab.testing import RULES

PLUGINS = {plugin["name"]: plugin for plugin in describe_plugins()}
SCHEMA = recipe_schema()
IMPLEMENTERS = {hook: [n for n, p in PLUGINS.items() if hook in p["hooks"]] for hook in HOOKS}

commands = click.Group(
    "ganlab",
    help=main.help,
    commands={
        name: load(name) if name in added() else main.commands[name]
        for name in main.list_commands(click.Context(main))
    },
)
"""All commands, those of plugins imported, for sphinx-click."""


class Generated(SphinxDirective):
    """A part of a page, written in MyST by a function of this module."""

    required_arguments = 1
    optional_arguments = 1  # what that function is given
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        name, *given = self.arguments
        text = WRITERS[name](*given)
        page = self.state_machine.node  # its sections are put there, so must be what is before them
        self.state.nested_parse(text.splitlines(), self.content_offset, page, match_titles=True)
        for section in page.findall(nodes.section):
            for id_ in section["ids"]:
                if id_.startswith("ganlab-"):  # a command, by sphinx-click
                    name = id_.replace("ganlab-", "command-", 1)
                    self.env.domains.standard_domain.note_object("entry", name, id_)
        return []


def hooks() -> str:
    """Every hook, in the order and under the headlines of hookspecs.py."""
    source = inspect.getsource(hookspecs)
    lines = []
    for headline, hook in re.findall(r"^# --- (\w+) -|^def (\w+)", source, re.MULTILINE):
        if headline:
            lines += [f"## {headline.capitalize()} hooks"]
        else:
            function = f".. autofunction:: ganlab.hookspecs.{hook}"
            lines += [*_entry(f"hook-{hook}"), "```{eval-rst}", function]
            lines += ["```", f"Implemented by: {_literals(IMPLEMENTERS[hook])}."]
        lines += [""]
    return "\n".join(lines)


def kinds() -> str:
    """The kinds of plugins, each with its page and its plugins."""
    return "\n".join(
        f"- [{kind.capitalize()}](plugins/{kind.replace(' ', '-')}.md): {_literals(_of_kind(kind))}"
        for kind in KINDS
    )


def plugins(kind: str) -> str:
    """Every installed plugin of a kind, with its options."""
    return "\n\n".join(map(_plugin, _of_kind(kind)))


def _of_kind(kind: str) -> list[str]:
    return [name for name, plugin in PLUGINS.items() if plugin["kind"] == kind]


def _plugin(name: str) -> str:
    plugin = PLUGINS[name]
    options = SCHEMA["definitions"][name]["properties"]
    facts = f"Hooks: {_literals(plugin['hooks'])}. From: {plugin['distribution']}."
    written = [
        # the last paragraph says whose option it is
        _value(f"{name}.{key}", option, option["description"].rpartition("\n\n")[0])
        for key, option in options.items()
        if key != "use"
    ]
    return "\n\n".join(
        [*_entry(f"plugin-{name}"), f"## {name}", plugin["docstring"], facts, *written]
    )


def rules() -> str:
    """The contract that every plugin is held to, in the order in which it is checked."""
    return "\n".join(f"1. `{rule.name}`: {rule.sentence}" for rule in RULES)


def settings() -> str:
    """Every key of a recipe beside the tables of plugins."""
    return "\n\n".join(
        _value(key, part, part["description"]) for key, part in SCHEMA["properties"].items()
    )


def tree() -> str:
    """Every command with its help and options, by sphinx-click."""
    return (
        "```{eval-rst}\n.. click:: ganlab_pages:commands\n   :prog: ganlab\n   :nested: full\n```"
    )


def _entry(name: str) -> list[str]:
    """The lines that make a place to link to."""
    return [f"```{{entry}} {name}", "```"]


def _value(name: str, schema: dict[str, Any], text: str) -> str:
    meaning, _, facts = text.partition("\n\n")
    facts = facts.replace("may be a schedule", SCHEDULE)
    body = f"{meaning}\n\n{'; '.join(filter(None, [_type(schema), facts]))}."
    return f"````{{confval}} {name}\n:no-contents-entry:\n\n{body}\n````"


SCHEDULE = "[may be a schedule](/reference/recipes.md#numbers-that-change)"
_TYPES = {
    "boolean": "true or false",
    "number": "number",
    "integer": "whole number",
    "string": "text",
    "array": "list",
    "object": "table",
}


def _type(schema: dict[str, Any]) -> str:
    """The type of a value in words of TOML; "" where the limits name all values."""
    if "enum" in schema or "const" in schema:
        return ""
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if "number" in kinds:  # which may be whole, or a table: a schedule
        return "number"
    found = [_TYPES[kind] for kind in kinds] or [_type(part) for part in schema.get("anyOf", [])]
    return " or ".join(dict.fromkeys(filter(None, found)))


def _literals(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "no plugin"


class NotebookParser(MystParser):
    """An executed notebook as a page: its texts, its code, and what each cell gave."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        cells = json.loads(inputstring)["cells"]
        super().parse("\n\n".join(part for cell in cells for part in _cell(cell)), document)


def _cell(cell: dict[str, Any]) -> list[str]:
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [text]
    return [f"```python\n{text}\n```", *map(_output, cell["outputs"])]


def _output(output: dict[str, Any]) -> str:
    data = {kind: "".join(part) for kind, part in output.get("data", {}).items()}
    if "text/html" in data:
        return f"````{{raw}} html\n{data['text/html']}\n````"
    if "image/png" in data:
        picture = "".join(data["image/png"].split())
        return f'```{{raw}} html\n<img alt="" src="data:image/png;base64,{picture}">\n```'
    text = data.get("text/plain") or "".join(output["text"])
    return f"```\n{text.rstrip()}\n```"


class Links(SphinxTransform):
    """Make each name of a hook, plugin or command in code type a link, and each paper too."""

    default_priority = 500

    def apply(self, **kwargs: Any) -> None:
        for name in list(self.document.findall(nodes.literal)):
            if (target := _target(name.astext())) and not _inside(name, LINKED):
                link = addnodes.pending_xref(
                    "", refdomain="std", reftype="entry", reftarget=target, refexplicit=True
                )
                link["refdoc"] = self.env.docname
                name.replace_self(link)
                link += name
        for text in list(self.document.findall(nodes.Text)):
            if text == " -- ":  # between the name of a parameter and its text
                text.parent.replace(text, nodes.Text(": "))
            elif isinstance(text.parent, addnodes.literal_strong):  # several parameters
                text.parent.replace(text, nodes.Text(", ".join(text.split(","))))
            elif PAPER.search(text) and not _inside(text, (*LINKED, nodes.FixedTextElement)):
                text.parent.replace(text, list(_with_links(text.astext())))


LINKED = (nodes.reference, addnodes.pending_xref, nodes.title)
PAPER = re.compile(r"(arXiv:\d{4}\.\d{4,5}|doi:10\.\d+/[\w./()-]*\w)")
_ADDRESSES = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}


def _target(name: str) -> str:
    """The entry of what a name in code type stands for; "" where it is none of these."""
    if name in HOOKS:
        return f"hook-{name}"
    if name in PLUGINS:
        return f"plugin-{name}"
    words = name.removeprefix("ganlab ").split()
    if name.startswith("ganlab ") and words and words[0] in commands.commands:
        return f"command-{words[0]}"
    return ""


def _inside(node: nodes.Node, kinds: tuple[type, ...]) -> bool:
    while node.parent:
        node = node.parent
        if isinstance(node, kinds):
            return True
    return False


def _with_links(text: str) -> Iterator[nodes.Node]:
    for part in PAPER.split(text):
        kind, _, number = part.partition(":")
        if PAPER.fullmatch(part):
            yield nodes.reference("", part, refuri=_ADDRESSES[kind] + number)
        elif part:
            yield nodes.Text(part)


def as_markup(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """A docstring as Sphinx reads it: formulas are literal, and parameters may share a text."""
    text = re.sub(r"^Alias for field number \d+$", "", "\n".join(lines).strip())
    text = re.sub(r"(?m)^( {0,3}\S.*)\n\n(?=    \S)", r"\1\n\n::\n\n", text)
    text = re.sub(r"(?m)^(?!    ).*\|.*$", lambda m: m[0].replace("|", "\\|"), text)
    text = re.sub(r"(?m)^:param [^:]+:", lambda m: m[0].replace(", ", ","), text)
    lines[:] = text.split("\n")


def short_signature(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """A plugin class without its options in the signature: they follow, each with its text.

    Their types are without `Annotated`: what `MayChange` and others say is no part of a type.
    """
    if isinstance(thing, type) and issubclass(thing, BaseModel):
        own = {"__annotations__": inspect.get_annotations(thing), "__module__": thing.__module__}
        thing.__annotations__ = get_type_hints(type("Own", (), own))
        return "", ""
    # `<factory>` is no Python: Sphinx would take the whole signature for plain text
    return (re.sub(r"= <.*?>(?=[,)])", "= ...", signature), returns) if signature else None


WRITERS = {
    "hooks": hooks,
    "kinds": kinds,
    "plugins": plugins,
    "rules": rules,
    "settings": settings,
    "commands": tree,
}


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_crossref_type("entry", "entry")
    app.add_directive("generated", Generated)
    app.add_source_suffix(".ipynb", "notebook")
    app.add_source_parser(NotebookParser)
    app.add_transform(Links)
    app.connect("autodoc-process-docstring", as_markup)
    app.connect("autodoc-process-signature", short_signature)
    return {"parallel_read_safe": True}
