"""Dockerfile, .dockerignore and docs/how-to/container.md agree with each other and the project."""

import fnmatch
import json
import re
import tomllib
from pathlib import Path

import pytest

from ganlab.recipe.bundled import is_bundled

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PAGE = ROOT / "docs" / "how-to" / "container.md"
WORDS = {"ARG", "FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "SHELL", "ENTRYPOINT", "CMD"}

Instructions = list[tuple[str, str]]


def instructions() -> Instructions:
    """Every instruction of the Dockerfile as (word, rest), continued lines joined."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", "", text)
    return [
        (line.split()[0], line.partition(" ")[2].strip()) for line in joined.splitlines() if line
    ]


def stages() -> dict[str, Instructions]:
    """The instructions of each stage and of those that it is built on, by the stage's name."""
    found: dict[str, Instructions] = {}
    name = ""
    for word, rest in instructions():
        if word == "FROM":
            before, name = rest.split(" AS ")
            found[name] = [*found.get(before, [("FROM", before)])]
        elif name:
            found[name].append((word, rest))
    return found


def argument(name: str) -> str:
    """The default of a build argument."""
    (default,) = {r.partition("=")[2].strip('"') for w, r in instructions()
                  if w == "ARG" and r.partition("=")[0] == name}  # fmt: skip
    return default


def last(stage: str, word: str) -> str:
    return [rest for each, rest in stages()[stage] if each == word][-1]


def copied(stage: str) -> list[str]:
    """What a stage takes from the project."""
    found: list[str] = []
    for word, rest in stages()[stage]:
        if word == "COPY":
            found += [part for part in rest.split() if not part.startswith("--")][:-1]
    return found


def ignored() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_every_line_is_an_instruction_and_every_stage_is_built_on_one_that_is_there() -> None:
    assert {word for word, _ in instructions()} == WORDS
    assert [*stages()] == ["base", "packages", "test", "ganlab"]  # the last is the default
    assert all(found[0] == ("FROM", "${BASE}") for found in stages().values())


def test_uv_finds_the_cache_that_each_step_mounts() -> None:
    for found in stages().values():
        kept = {rest.partition("=")[2] for word, rest in found
                if word == "ARG" and rest.startswith("UV_CACHE_DIR=")}  # fmt: skip
        mounted = re.findall(r"--mount=type=cache,target=(\S+)", str(found))
        assert {*mounted} == kept


def test_the_python_of_the_image_is_one_that_the_project_takes_and_was_tested_with() -> None:
    asked = PROJECT["project"]["requires-python"].removeprefix(">=")
    python = argument("PYTHON")
    assert [*map(int, python.split("."))] >= [*map(int, asked.split("."))]
    assert argument("BASE") == "python:${PYTHON}-slim"
    assert f"constraints/py{python.replace('.', '')}.txt" in copied("packages")


def test_the_image_trains_what_the_readme_trains_and_runs_the_tests_as_it_does() -> None:
    readme = (ROOT / "README.md").read_text()
    train, test, *_ = re.findall(r"```sh\n(.*?)```", readme, flags=re.DOTALL)
    command = json.loads(last("ganlab", "ENTRYPOINT")) + json.loads(last("ganlab", "CMD"))
    assert command == ["ganlab", "run", "wgan_gp"]
    assert is_bundled(Path(command[-1]))
    assert train.strip().endswith(" ".join(command))
    assert " ".join(json.loads(last("test", "CMD"))) == test.strip()
    assert last("ganlab", "WORKDIR") == "/work"


def test_all_that_the_wheel_is_made_of_is_in_the_image_with_recipes_and_docs() -> None:
    built = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    needed = {Path(part).parts[0] for part in built} | {"pyproject.toml", "docs"}
    needed |= {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    assert needed <= {*copied("ganlab")}


@pytest.mark.parametrize("stage", ["test", "ganlab"])
def test_what_is_copied_is_there_and_not_ignored(stage: str) -> None:
    for name in copied(stage):
        assert (ROOT / name).exists(), name
        assert not [pattern for pattern in ignored() if fnmatch.fnmatch(name, pattern)], name


def test_what_git_ignores_gets_into_no_image() -> None:
    lines = (ROOT / ".gitignore").read_text().split()
    names = {line.strip("/") for line in lines if "tombi" not in line and "taplo" not in line}
    found = {pattern.removeprefix("**/") for pattern in ignored()}
    assert names - {"pylock*.toml"} <= found
    assert ".git" in found


@pytest.mark.parametrize("stage", ["test", "ganlab"])
def test_an_image_runs_as_a_user_without_rights(stage: str) -> None:
    words = [word for word, _ in stages()[stage]]
    assert last(stage, "USER") == "1000"
    assert "RUN" not in words[words.index("USER") :]  # else it could not install
    assert "--uid 1000 " in last("base", "RUN")


def test_the_page_names_targets_and_arguments_of_the_dockerfile_with_their_defaults() -> None:
    text = PAGE.read_text()
    assert {*re.findall(r"--target (\S+)", text)} == {"test"}
    arguments = {rest.partition("=")[0] for word, rest in instructions() if word == "ARG"}
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", text, flags=re.MULTILINE))
    assert rows.keys() == arguments
    assert {*re.findall(r"--build-arg (\w+)=", text)} <= arguments
    base = argument("BASE").replace("${PYTHON}", argument("PYTHON"))
    told = {"PYTHON": argument("PYTHON"), "BASE": base,
            "DEBIAN_PACKAGES": argument("DEBIAN_PACKAGES"),
            "UV_CACHE_DIR": argument("UV_CACHE_DIR")}  # fmt: skip
    assert {name: rows[name].strip("`") for name in told} == told
    assert argument("TORCH_BACKEND") == ""
