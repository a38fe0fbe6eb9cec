"""`--data FOLDER`: a recipe on a folder of images of the user's own."""

import json
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from tiny import TINY

from ganlab import api
from ganlab.cli import main
from ganlab.cli.options import OVERRIDE, RecipeFile, RecipeOrRun
from ganlab.compare.comparison import arms_of
from ganlab.compare.difference import check_two, difference
from ganlab.errors import RecipeError
from ganlab.images.files import write_png
from ganlab.recipe import own_data
from ganlab.recipe.discovery import READS_FOLDER, find_plugin, installed
from ganlab.recipe.model import Recipe, load_recipe
from ganlab.recipe.own_data import on_folder


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of twelve small photographs, photos/ in the current folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        image = torch.randint(0, 256, (3, 48, 56), dtype=torch.uint8)
        write_png(image, folder / f"{number}.png")
    return folder


def on_photos(file: Path | str, *overrides: str) -> Recipe:
    return load_recipe(file, on_folder(file, overrides, Path("photos")))


def test_a_run_trains_on_the_folder_and_is_scored_on_images_that_it_names(
    photos: Path, tiny: Path
) -> None:
    result = invoke("run", "tiny.toml", "--data", "photos", "--device", "cpu")
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stderr.splitlines() if " held out, chosen" in line]
    number, names = int(line.split()[2]), line.partition("trained on: ")[2].split(", ")
    assert len(names) == number >= 1
    data = json.loads(Path("runs", "tiny-1", "data.json").read_text())
    trained, (scored,) = data["training"]["image_folder"], data["held_out"].values()
    assert sorted(scored) == sorted(names)
    assert sorted([*trained, *scored]) == sorted(path.name for path in photos.iterdir())


def test_what_it_sets_is_told_and_does_the_same_when_it_is_typed(
    photos: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = on_folder("tiny.toml", (), Path("photos"))
    told = capsys.readouterr().err
    assert "--set dead_leaves=false --set 'image_folder={" in told
    assert [f"--set {change}" in told.replace("'", "") for change in changes] == [True, True]
    assert load_recipe("tiny.toml", changes).plugins["image_folder"].path == photos


def test_the_options_that_both_sources_have_keep_their_values(photos: Path, tiny: Path) -> None:
    tiny.write_text(
        TINY.replace("dead_leaves = { crop = 16,", "dead_leaves = { turns = false, crop = 16,")
    )
    before, after = load_recipe(tiny).plugins, on_photos(tiny).plugins
    assert after.keys() - before.keys() == {"image_folder"}
    assert before.keys() - after.keys() == {"dead_leaves"}
    assert (after["image_folder"].crop, after["image_folder"].turns) == (16, False)


@pytest.mark.parametrize("place", ["shards", "https://example.org/shards"])
def test_the_places_of_other_data_are_not_kept(photos: Path, tmp_path: Path, place: str) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        f'iterations = 1\n[plugins]\nimage_shards = {{ path = "{place}", evaluation_path = "held", '
        "crop = 24 }\n"
    )
    plugin = on_photos(recipe).plugins["image_folder"]
    assert (plugin.path, plugin.evaluation_path, plugin.crop) == (photos, None, 24)


def test_a_plugin_that_reads_a_folder_gets_the_other_one_and_loses_the_old_paths(
    photos: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'iterations = 1\n[plugins]\nmine = { use = "image_folder", path = "old", '
        'evaluation_path = "held", crop = 24, alpha = "black" }\n'
    )
    plugin = on_photos(recipe).plugins["mine"]
    assert (plugin.path, plugin.evaluation_path, plugin.crop) == (photos, None, 24)
    assert plugin.alpha == "black"


def test_options_of_the_user_come_last(photos: Path, tiny: Path) -> None:
    recipe = on_photos(tiny, "image_folder.held_out_share=0.5", "iterations=7")
    assert recipe.plugins["image_folder"].held_out_share == 0.5
    assert recipe.iterations == 7


def test_a_plugin_that_only_changes_samples_stays(photos: Path) -> None:
    recipe = on_photos("failures/leak")
    assert {"same_crops", "image_folder"} <= recipe.plugins.keys()
    assert "builtin" not in recipe.plugins


READER = """\
from ganlab import Plugin, RecipePath, hookimpl


class Reader(Plugin):
    reads_folder = "place"

    place: RecipePath
    size: int = 3

    @hookimpl
    def sample_real(self, batch_size, device):
        raise NotImplementedError
"""


def test_a_plugin_file_may_read_a_folder_under_a_name_of_its_own(photos: Path) -> None:
    Path("reader.py").write_text(READER)
    Path("mine.toml").write_text(
        'iterations = 1\n[plugins]\na = { use = "./reader.py", place = "x", size = 5 }\n'
    )
    plugin = on_photos("mine.toml").plugins["a"]
    assert (plugin.place, plugin.size) == (photos, 5)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["tiny.toml", "--data", "nowhere"], "--data nowhere: no such folder"),
        (["tiny.toml", "--data", "photos/0.png"], "is a file, not a folder"),
        (["tiny.toml", "--data", "empty"], "no image in it or below it"),
        (["two.toml", "--data", "photos"], "a and b of this recipe read folders; say which"),
        (["tiny.toml", "--data", "photos", "--set", "image_folder.corp=9"], "mean 'crop'?"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_message(
    photos: Path, tiny: Path, arguments: list[str], complaint: str
) -> None:
    Path("empty").mkdir()
    Path("two.toml").write_text(
        "iterations = 1\n[plugins]\n" + "".join(
            f'{name} = {{ use = "image_folder", path = "x" }}\n' for name in "ab"
        )
    )  # fmt: skip
    result = invoke("run", *arguments)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("readers", "complaint"),
    [
        ([], "no installed plugin reads one"),
        (["a", "b"], "several installed plugins read one: a, b"),
    ],
)
def test_which_plugin_shall_read_must_be_clear(
    photos: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, readers: list[str], complaint: str
) -> None:
    monkeypatch.setattr(own_data, "folder_readers", lambda: readers)
    result = invoke("run", "tiny.toml", "--data", "photos")
    assert (result.exit_code, complaint in result.stderr) == (2, True)


def test_the_group_of_readers_has_exactly_the_plugins_that_say_so() -> None:
    named = {point.name for point in entry_points(group=READS_FOLDER)}
    ours = {n: find_plugin(n, "here")[0] for n, p in installed().items() if "ganlab_" in p.value}
    assert named & ours.keys() == {name for name, plugin in ours.items() if plugin.reads_folder}
    for name in named & ours.keys():
        assert ours[name].reads_folder in ours[name].model_fields


def test_check_takes_the_folder_and_names_the_command_that_trains_on_it(
    photos: Path, tiny: Path
) -> None:
    result = invoke("check", "tiny.toml", "--data", "photos")
    assert result.exit_code == 0, result.output
    assert "next: ganlab run tiny.toml --data photos\n" in result.stderr


def test_every_command_that_overrides_values_of_recipes_takes_a_folder_too() -> None:
    takes = {}
    for name, command in main.commands.items():
        types = [parameter.type for parameter in command.params]
        if {RecipeFile, RecipeOrRun} & {*map(type, types)} and OVERRIDE in types:
            takes[name] = "data" in [parameter.name for parameter in command.params]
    assert takes.keys() >= {"run", "check", "explain", "trace", "bench", "compare", "ablate"}
    assert [name for name in takes if not takes[name]] == []


def test_the_recipe_that_is_explained_and_the_next_command_are_on_the_folder(
    photos: Path, tiny: Path
) -> None:
    shown = invoke("explain", "tiny.toml", "--data", "photos", "--no-cost", "--set", "seed=3")
    assert "image_folder" in shown.stdout
    assert "dead_leaves" not in shown.stdout
    assert "next: ganlab run tiny.toml --data photos --set seed=3\n" in shown.stderr


def test_every_arm_of_a_comparison_and_both_ends_of_a_search_are_on_the_folder(
    photos: Path, tiny: Path
) -> None:
    Path("other.toml").write_text('extends = "tiny.toml"\nbatch_size = 3\n')
    (one, other), _, _ = arms_of(["tiny.toml", "other.toml"], ("seed=1",), photos)
    good, bad = check_two("tiny.toml", "other.toml", ("seed=1",), photos)
    for recipe in (one.recipe(1), other.recipe(1), good.recipe, bad.recipe):
        assert recipe.plugins["image_folder"].path == photos
    assert [change.key for change in difference(good, bad)] == ["batch_size"]


def test_variants_of_an_ablation_are_on_the_folder(photos: Path, tiny: Path) -> None:
    shown = invoke("ablate", "tiny.toml", "--data", "photos", "--plan", "--seeds", "0",
                   "--without", "dead_leaves")  # fmt: skip
    assert (shown.exit_code, "has no plugin 'dead_leaves'" in shown.stderr) == (2, True)


def test_a_run_that_exists_is_not_compared_on_another_folder(photos: Path, tiny: Path) -> None:
    assert invoke("run", "tiny.toml", "--device", "cpu").exit_code == 0
    shown = invoke("compare", "tiny.toml", "tiny-1", "--data", "photos")
    assert shown.exit_code == 2
    assert "--data changes recipes; it has no effect on a run folder" in shown.stderr


def test_a_recipe_is_loaded_on_a_folder_from_python(photos: Path, tiny: Path) -> None:
    loaded = api.load_recipe("tiny.toml", {"seed": 2}, data="photos")
    assert (loaded.plugins["image_folder"].path, loaded.seed) == (photos, 2)
    with pytest.raises(RecipeError, match="loaded already"):
        api.run(loaded, data="photos")


def test_a_single_image_is_trained_on_and_not_held_out(photos: Path, tiny: Path) -> None:
    for path in list(photos.iterdir())[1:]:
        path.unlink()
    result = invoke("run", "tiny.toml", "--data", "photos", "--device", "cpu")
    assert "note: image_folder: no image is held out, so nothing is scored" in result.stderr


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)
