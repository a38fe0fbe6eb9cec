"""The site of the documentation: it is complete, its links lead somewhere, and it is one folder.

Sphinx builds it once, as a reader of CONTRIBUTING.md does; each warning is an error.
"""

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click
import pytest
from filelock import FileLock
from pages import Page

from ganlab import hookspecs
from ganlab.cli import main
from ganlab.commands.describe import HOOKS, KINDS, describe_plugins
from ganlab.commands.schema import recipe_schema

pytestmark = pytest.mark.long  # the build takes half a minute of CPU time
ROOT = Path(__file__).parents[1]
LOADED = {"link": "href", "script": "src", "img": "src", "source": "src", "iframe": "src"}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as built from docs/ now."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # one site for all processes of the tests
        folder = folder.parent
    html = folder / "site"
    with FileLock(folder / "site.lock"):
        if not html.is_dir():
            command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q"]
            places = ["-d", folder / "doctrees", ROOT / "docs", html]
            done = subprocess.run([*command, *places], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
    return html


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[Path, Page]:
    return {file: Page(file.read_text(encoding="utf-8")) for file in site.rglob("*.html")}


def ids(page: Page) -> set[str]:
    return {value for _, attrs in page.tags if (value := attrs.get("id"))}


def reference(site: Path, name: str) -> str:
    return (site / "reference" / f"{name}.html").read_text(encoding="utf-8")


def commands(group: click.Group, path: str) -> Iterator[str]:
    context = click.Context(group)
    for name in group.list_commands(context):
        yield f"{path}-{name}"
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, f"{path}-{name}")


def test_every_hook_is_there_with_each_argument_and_the_plugins_that_implement_it(
    site: Path,
) -> None:
    html = reference(site, "hooks")
    for hook in HOOKS:
        place = html.index(f'id="ganlab.hookspecs.{hook}"')
        signature = Page(html[place : html.index("</dt>", place)]).text
        arguments = inspect.signature(getattr(hookspecs, hook)).parameters
        assert set(arguments) <= set(re.findall(r"\w+", signature)), hook
        end = html.find('id="ganlab.hookspecs.', place + 1)
        implementers = set(
            re.findall(r"plugins/[\w-]+\.html#std-entry-plugin-(\w+)", html[place:end])
        )
        named = {p["name"] for p in describe_plugins(hook=hook)}
        assert named <= implementers, hook


def test_every_plugin_is_on_the_page_of_its_kind_with_each_option_its_paper_and_its_hooks(
    site: Path,
) -> None:
    for kind in KINDS:
        html = reference(site, f"plugins/{kind.replace(' ', '-')}")
        page = Page(html)
        words = " ".join(page.text.split())
        for plugin in (p for p in describe_plugins() if p["kind"] == kind):
            assert f"std-entry-plugin-{plugin['name']}" in ids(page)
            assert plugin["summary"].replace("`", "") in words
            part = html.partition(f'id="std-entry-plugin-{plugin["name"]}"')[2]
            hooks = re.findall(r"hooks\.html#std-entry-hook-(\w+)", part.partition("</section>")[0])
            assert set(plugin["hooks"]) <= set(hooks)
            for option in plugin["options"]:
                assert f"confval-{plugin['name']}.{option['name']}" in ids(page)
                assert option["description"].replace("`", "") in words


def test_an_option_that_may_be_a_schedule_leads_to_the_section_on_schedules(site: Path) -> None:
    html = reference(site, "plugins/penalties")
    option = html.partition('id="confval-gradient_penalty.weight"')[2].partition("</dd>")[0]
    assert "at least 0; default 10.0" in Page(option).text
    assert 'href="../recipes.html#numbers-that-change"' in option


def test_every_key_of_a_recipe_and_every_command_is_there(site: Path) -> None:
    keys = {f"confval-{key}" for key in recipe_schema()["properties"]}
    assert keys <= ids(Page(reference(site, "settings")))
    assert set(commands(main, "ganlab")) <= ids(Page(reference(site, "commands")))


def test_a_command_that_a_plugin_adds_is_there_with_its_options(site: Path) -> None:
    html = reference(site, "commands")
    assert (
        "--" in Page(html.partition('id="ganlab-dead-leaves"')[2].partition("</section>")[0]).text
    )


@pytest.mark.parametrize("name", ["kit", "python"])
def test_the_type_of_an_option_is_shown_without_what_else_its_annotation_says(
    name: str, site: Path
) -> None:
    found = re.findall(r'<dt class="sig .*?</dt>', reference(site, name), re.DOTALL)
    signatures = [Page(part).text.strip() for part in found]
    assert len(signatures) > 50
    options = [text for text in signatures if not text.startswith("class")]
    assert not [text for text in options if re.search(r"(NoEffect|MayChange|Begins)\(", text)]


def test_no_link_is_dead(site: Path, pages: dict[Path, Page]) -> None:
    known = {file: ids(page) for file, page in pages.items()}
    dead = []
    for file, page in pages.items():
        for _, attrs in page.tags:
            for address in filter(None, (attrs.get("href"), attrs.get("src"))):
                parts = urlsplit(address)
                if parts.scheme:  # another host, or a picture in the page itself
                    continue
                target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
                anchor = unquote(parts.fragment)
                lost = anchor and target in known and anchor not in known[target]
                if not target.is_file() or lost:
                    dead.append((file.name, address))
    assert dead == []


def test_no_page_loads_anything_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    loaded = [
        attrs.get(LOADED[tag]) or ""
        for page in pages.values()
        for tag, attrs in page.tags
        if tag in LOADED
    ]
    assert len(loaded) > 100
    assert {urlsplit(address).scheme for address in loaded} <= {"", "data"}
    assert not [address for address in loaded if address.startswith("//")]
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", style.read_text()), style.name


def test_every_page_of_docs_is_on_the_site(site: Path) -> None:
    folders = ("tutorial", "how-to", "reference", "explanation")
    sources = [p for folder in folders for p in (ROOT / "docs" / folder).rglob("*") if p.is_file()]
    assert len(sources) > 20
    for source in sources:
        page = source.relative_to(ROOT / "docs").with_suffix(".html")
        assert (site / page).is_file(), source.name
