"""Recipes: inheritance, overrides, plugin files, and the resolved recipe."""

import os
import sys
from pathlib import Path

import pytest
from children import Child

from ganlab.recipe.model import load_recipe, resolved

BASE = """\
iterations = 10
batch_size = 2

[plugins]
dead_leaves = { crop = 16 }
bicubic = { scale = 4 }

[plugins.gradient_penalty]
weight = 10.0
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    file = tmp_path / "base.toml"
    file.write_text(BASE)
    return file


def child(base: Path, text: str) -> Path:
    file = base.with_name("child.toml")
    file.write_text('extends = "base.toml"\n' + text)
    return file


def test_tables_merge_and_the_child_wins(base: Path) -> None:
    recipe = load_recipe(child(base, "iterations = 5\n[plugins]\nbicubic = { exact = true }\n"))
    assert (recipe.iterations, recipe.batch_size) == (5, 2)
    assert recipe.plugins["bicubic"].scale == 4  # type: ignore[attr-defined]
    assert recipe.plugins["bicubic"].exact is True  # type: ignore[attr-defined]


def test_false_drops_an_inherited_plugin(base: Path) -> None:
    recipe = load_recipe(child(base, "[plugins]\nbicubic = false\n"))
    assert list(recipe.plugins) == ["dead_leaves", "gradient_penalty"]


def test_the_order_of_the_file_is_kept_and_new_plugins_come_last(base: Path) -> None:
    recipe = load_recipe(child(base, "[plugins]\nema = {}\nbicubic = { scale = 2 }\n"))
    assert list(recipe.plugins) == ["dead_leaves", "bicubic", "gradient_penalty", "ema"]


@pytest.mark.parametrize(
    ("override", "check"),
    [
        ("iterations=7", lambda r: r.iterations == 7),
        ("gradient_penalty.weight=5", lambda r: r.plugins["gradient_penalty"].weight.at(0) == 5),
        ("plugins.bicubic.scale=2", lambda r: r.plugins["bicubic"].scale == 2),
        ("bicubic=false", lambda r: "bicubic" not in r.plugins),
        ("ema={ decay = 0.5 }", lambda r: r.plugins["ema"].decay == 0.5),
        ("precision=float64", lambda r: r.precision == "float64"),
        ('precision="float64"', lambda r: r.precision == "float64"),
    ],
)
def test_set_overrides_a_value(base: Path, override: str, check) -> None:
    assert check(load_recipe(base, [override]))


def test_one_plugin_may_be_used_twice_under_two_names(base: Path) -> None:
    text = '[plugins]\nl1 = { use = "pixel_loss" }\nl2 = { use = "pixel_loss", kind = "mse" }\n'
    recipe = load_recipe(child(base, text))
    assert [recipe.plugins[n].name for n in ("l1", "l2")] == ["l1", "l2"]
    assert type(recipe.plugins["l1"]) is type(recipe.plugins["l2"])


def test_a_path_is_relative_to_the_file_that_states_it(
    base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "deep.toml").write_text(
        'extends = "../folder.toml"\n[plugins]\nimage_folder = { evaluation_path = "b" }\n'
    )
    (tmp_path / "folder.toml").write_text(
        'iterations = 1\n[plugins]\nimage_folder = { path = "a" }\n'
    )
    plugin = load_recipe(inner / "deep.toml").plugins["image_folder"]
    assert plugin.path == tmp_path / "a"  # type: ignore[attr-defined]
    assert plugin.evaluation_path == inner / "b"  # type: ignore[attr-defined]
    (inner / "over.toml").write_text(
        'extends = "../folder.toml"\n[plugins]\nimage_folder = { path = "mine" }\n'
    )
    plugin = load_recipe(inner / "over.toml").plugins["image_folder"]
    assert plugin.path == inner / "mine"  # type: ignore[attr-defined]
    monkeypatch.chdir(inner)
    overrides = ['image_folder={ path = "d" }']
    plugin = load_recipe(tmp_path / "folder.toml", overrides).plugins["image_folder"]
    assert plugin.path == inner / "d"  # type: ignore[attr-defined]
    plugin = load_recipe(tmp_path / "folder.toml", ["image_folder.path=c"]).plugins["image_folder"]
    assert plugin.path == inner / "c"  # type: ignore[attr-defined]


def test_the_resolved_recipe_spells_out_every_value_and_loads_as_the_same(base: Path) -> None:
    text = (
        "[plugins]\ninstance_noise = { sigma = { from = 0.2, to = 0.0, over = 9 } }\n"
        'noise2 = { use = "instance_noise", sigma = 0.1 }\nimage_folder = { path = "a b\\"c" }\n'
        'learning_rate_schedule = { kind = "cosine", over = 5 }\nadam = { betas = [0.5, 0.9] }\n'
    )
    recipe = load_recipe(child(base, text), ["seed=9"])
    file = base.with_name("again.toml")
    file.write_text(resolved(recipe))
    assert "checkpoint_every" in file.read_text()  # a default
    again = load_recipe(file)
    assert again.model_dump() == recipe.model_dump()
    assert list(again.plugins) == list(recipe.plugins)
    for name, plugin in recipe.plugins.items():
        assert again.plugins[name].model_dump() == plugin.model_dump(), name


def test_a_plugin_file_beside_the_recipe_is_found_hashed_and_can_use_postponed_annotations(
    base: Path,
) -> None:
    base.with_name("mine.py").write_text(
        "from __future__ import annotations\n\nfrom ganlab import Plugin, Schedule\n\n\n"
        "class Mine(Plugin):\n    strength: Schedule = Schedule.constant(1)\n"
    )
    recipe = load_recipe(child(base, '[plugins]\nmy_idea = { use = "./mine.py", strength = 2 }\n'))
    assert recipe.plugins["my_idea"].strength.at(0) == 2  # type: ignore[attr-defined]
    source = recipe.sources["my_idea"]
    assert source.beside_recipe
    assert len(source.sha256) == 64


def test_a_changed_plugin_file_is_read_again_in_one_process(base: Path) -> None:
    code = "from ganlab import Plugin\n\n\nclass Mine(Plugin):\n    x: int = {}\n"
    file = child(base, '[plugins]\nm = { use = "./mine.py" }\n')
    for value in (1, 2):
        base.with_name("mine.py").write_text(code.format(value))
        assert load_recipe(file).plugins["m"].x == value  # type: ignore[attr-defined]


def load_and_tell(name: str) -> None:
    load_recipe(name)
    os.write(1, repr([m for m in sys.modules if m.startswith("ganlab_plugins.")]).encode())


def test_loading_a_recipe_imports_only_the_plugins_it_names(base: Path) -> None:
    child = Child("base.toml", cwd=base.parent, function=load_and_tell)
    child.wait()
    assert "srresnet" not in child.stdout
    assert "ganlab_plugins.bicubic" in child.stdout
