"""What every installed plugin must be, whoever wrote it; the list is the entry points."""

import inspect
import re

import pytest

from ganlab import Plugin
from ganlab.commands.describe import HOOKS
from ganlab.recipe.discovery import find_plugin, installed
from ganlab.recipe.file import Origin

NAMES = sorted(installed())


def load(name: str) -> type[Plugin]:
    return find_plugin(name, Origin(None, text=name))[0]


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is_in_one_sentence(name: str) -> None:
    text = inspect.getdoc(load(name)) or ""
    first = text.partition("\n\n")[0].replace("\n", " ")
    assert first.endswith((".", ":")), first
    assert len(first) < 200


@pytest.mark.parametrize("name", NAMES)
def test_it_names_its_source(name: str) -> None:
    plugin = load(name)
    text = (inspect.getdoc(plugin) or "") + (inspect.getdoc(inspect.getmodule(plugin)) or "")
    if name in ("builtin", "image_folder"):  # data of the user's machine, nobody's method
        return
    assert re.search(r"arXiv:\d{4}\.\d{4,5}|doi:|(19|20)\d\d", text), text


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_described(name: str) -> None:
    for option, field in load(name).model_fields.items():
        assert field.description, option


@pytest.mark.parametrize("name", NAMES)
def test_it_implements_hooks_without_default_arguments(name: str) -> None:
    plugin = load(name)
    hooks = [h for h in HOOKS if hasattr(getattr(plugin, h, None), "ganlab_impl")]
    assert hooks
    for hook in hooks:
        for parameter in inspect.signature(getattr(plugin, hook)).parameters.values():
            assert parameter.default is parameter.empty, (hook, parameter.name)


@pytest.mark.parametrize("name", NAMES)
def test_state_comes_in_pairs(name: str) -> None:
    plugin = load(name)
    assert hasattr(plugin, "state_dict") == hasattr(plugin, "load_state_dict")
