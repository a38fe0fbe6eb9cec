"""Recipes drawn at random, by the schema and against it, are accepted or refused in one line."""

import time
from pathlib import Path

import pytest
import tomlkit
from hypothesis import HealthCheck, given, settings, strategies as st
from tiny import TINY

from ganlab.errors import RecipeError
from ganlab.recipe.discovery import find_plugin
from ganlab.recipe.model import Recipe, load_recipe

PLUGINS = ["dead_leaves", "bicubic", "gradient_penalty", "pixel_loss", "image_folder", "ema",
           "adam", "pretraining", "torch_optimizer", "initial_weights"]  # fmt: skip
OPTIONS = {name: [*find_plugin(name, "test")[0].model_fields] for name in PLUGINS}
SETTINGS = st.sampled_from([*Recipe.model_fields, "extends", "plugins", "nonsense"])
NUMBERS = (
    st.integers() | st.integers(-3, 3) | st.floats() | st.sampled_from([0, 1, 2**63, -(2**63)])
)
TEXTS = st.text(max_size=20) | st.sampled_from(
    ["auto", "off", "psnr_y", "./a.py", "../x", "\0", "[red]"]
)
VALUES = st.recursive(
    NUMBERS | TEXTS | st.booleans() | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
SPANS = st.tuples(st.integers(0, len(TINY)), st.integers(0, 12), st.text(max_size=8))


@st.composite
def tables(draw: st.DrawFn) -> str:
    """A recipe of any values, in part under the names of settings, plugins and options."""
    names = draw(st.lists(st.sampled_from(PLUGINS), max_size=3, unique=True))
    plugins = {}
    for name in names:
        options = [*OPTIONS[name], "use", "nonsense"]
        plugins[name] = draw(st.dictionaries(st.sampled_from(options), VALUES, max_size=3) | VALUES)
    values = draw(st.dictionaries(SETTINGS, VALUES, max_size=4))
    values.setdefault("plugins", plugins)
    return _toml(values)


def _toml(values: dict) -> str:
    try:
        return tomlkit.dumps(values)
    except Exception:  # a value that tomlkit cannot write
        return "iterations = 1"


@st.composite
def mutants(draw: st.DrawFn) -> str:
    """A good recipe in which parts of the text are replaced."""
    text = TINY
    for start, length, other in draw(st.lists(SPANS, min_size=1, max_size=4)):
        text = text[:start] + other + text[start + length :]
    return text


def is_told(file: Path, text: str) -> None:
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_recipe(file)
    except RecipeError as error:
        message = str(error)
        assert message and len(message.splitlines()) == 1 and len(message) < 5_000, message


SHORT = settings(
    max_examples=60, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@SHORT
@given(text=tables() | mutants() | st.text())
def test_any_text_is_a_recipe_or_one_message(tmp_path: Path, text: str) -> None:
    is_told(tmp_path / "r.toml", text)


@pytest.mark.long
def test_ten_thousand_recipes_are_told_in_less_than_a_second_each(tmp_path: Path) -> None:
    slowest = 0.0

    @settings(SHORT, max_examples=10_000, derandomize=False)
    @given(text=tables() | mutants() | st.text())
    def each(text: str) -> None:
        nonlocal slowest
        began = time.process_time()
        is_told(tmp_path / "r.toml", text)
        slowest = max(slowest, time.process_time() - began)

    each()
    print(f"10,000 recipes; the slowest took {slowest:.2f} s of CPU")
