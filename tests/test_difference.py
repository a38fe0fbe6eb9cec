"""`ganlab diff`: what differs, every default folded in."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ganlab.cli import main
from ganlab.compare.difference import Change, check_two, difference


def changes(one: Path, other: Path | str) -> dict[str, Change]:
    return {change.key: change for change in difference(*check_two(one, other))}


@pytest.fixture
def variant(tiny: Path) -> Path:
    """The same recipe under another name, to be changed."""
    file = tiny.with_name("variant.toml")
    file.write_text(tiny.read_text())
    return file


def edit(file: Path, old: str, new: str) -> None:
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def test_a_recipe_does_not_differ_from_itself(tiny: Path, variant: Path) -> None:
    assert changes(tiny, variant) == {}


def test_a_default_spelled_out_is_no_difference(tiny: Path, variant: Path) -> None:
    edit(variant, "wasserstein = {}", "wasserstein = { weight = 1.0 }")
    edit(variant, "iterations = 4", "iterations = 4\nd_steps = 1")
    assert changes(tiny, variant) == {}


def test_values_plugins_and_settings_that_differ_are_told_on_both_sides(
    tiny: Path, variant: Path
) -> None:
    edit(variant, "iterations = 4", "iterations = 5")
    edit(variant, "gradient_penalty = { weight = 10.0 }", "gradient_penalty = { weight = 1.0 }")
    edit(variant, "pixel_loss = { weight = 1.0 }", "ema = {}")
    found = changes(tiny, variant)
    assert found["iterations"] == Change("changed", "iterations", "4", "5", "settings")
    key = "plugins.gradient_penalty.weight"
    assert found[key] == Change("changed", key, "10.0", "1.0", "plugins")
    assert found["plugins.pixel_loss"].kind == "removed"
    assert found["plugins.ema"].kind == "added"
    assert found["plugins.ema"].a is None
    assert "decay = 0.999" in (found["plugins.ema"].b or "")
    assert len(found) == 4


def test_the_order_of_plugins_matters_in_chained_hooks_alone(tiny: Path, variant: Path) -> None:
    penalty = "gradient_penalty = { weight = 10.0 }\n"
    edit(variant, penalty, "")
    variant.write_text(variant.read_text() + penalty)
    assert changes(tiny, variant) == {}
    noise, mirror = "instance_noise = { sigma = 0.1 }\n", "diff_augment = {}\n"
    tiny.write_text(tiny.read_text() + noise + mirror)
    variant.write_text(variant.read_text() + mirror + noise)
    found = changes(tiny, variant)
    assert found.keys() == {"order of augment"}
    assert found["order of augment"].b == "diff_augment -> instance_noise"


def test_a_plugin_whose_code_changed_since_a_run_is_told(tiny: Path) -> None:
    code = '''from ganlab import Plugin, hookimpl


class Idea(Plugin):
    """A loss."""

    @hookimpl
    def generator_loss(self, fake):
        return {"G/idea": fake.mean()}
'''
    idea = tiny.with_name("idea.py")
    idea.write_text(code)
    tiny.write_text(tiny.read_text() + 'idea = { use = "./idea.py" }\n')
    runs = ["--runs", str(tiny.parent / "runs"), "--name", "one"]
    assert CliRunner().invoke(main, ["run", str(tiny), *runs]).exit_code == 0
    run = tiny.parent / "runs" / "one"
    assert {c.group for c in difference(*check_two(run, tiny))} == set()
    idea.write_text(code.replace("fake.mean()", "fake.mean() ** 2"))
    (found,) = difference(*check_two(run, tiny))
    assert (found.key, found.group) == ("plugins.idea", "code")


def test_the_command_tells_every_change_and_exits_1_only_when_asked(
    tiny: Path, variant: Path
) -> None:
    edit(variant, "iterations = 4", "iterations = 5")
    told = CliRunner().invoke(main, ["diff", str(tiny), str(variant)])
    assert (told.exit_code, told.stdout) == (0, "~ iterations: 4 -> 5\n")
    command = ["diff", str(tiny), str(variant), "--json", "--exit-code"]
    asked = CliRunner().invoke(main, command)
    assert asked.exit_code == 1
    assert json.loads(asked.stdout)[0]["key"] == "iterations"
    same = CliRunner().invoke(main, ["diff", str(tiny), str(tiny), "--exit-code"])
    assert (same.exit_code, same.stdout) == (0, "no difference\n")


def test_what_is_neither_recipe_nor_run_is_refused(tiny: Path) -> None:
    result = CliRunner().invoke(main, ["diff", str(tiny), str(tiny.parent / "nothing")])
    assert result.exit_code == 2
    assert "not a run folder" in result.stderr
