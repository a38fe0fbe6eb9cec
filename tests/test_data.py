"""Data are a part of what a run is: their digests, and what notices that they changed."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from ganlab import content_digest, image_digest
from ganlab.assembly import assemble
from ganlab.cli import main
from ganlab.compare.task import Training
from ganlab.images.store import ImageStore
from ganlab.recipe.model import load_recipe
from ganlab.runs.data import Data, differences, digests, file_digests, renamed, trained_on

pytestmark = pytest.mark.usefixtures("few_samples")

RECIPE = """\
iterations = 4
batch_size = 2
evaluate_every = 4
checkpoint_every = 2
watch_every = 0
[plugins]
image_folder = { path = "photos", evaluation_path = "held_out", crop = 16 }
bicubic = {}
encoder_decoder = { width = 4, num_blocks = 1 }
pixel_loss = {}
patch_discriminator = { width = 4, num_layers = 1, norm = "none" }
bce = {}
"""


def picture(seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(small).resize((48, 48), Image.Resampling.BICUBIC)


def ganlab(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
    return done.exit_code, done.output


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, three photographs and one held-out picture."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    for folder, seeds in (("photos", (1, 2, 3)), ("held_out", (7,))):
        Path(folder).mkdir()
        for seed in seeds:
            picture(seed).save(f"{folder}/{seed}.png")
    Path("t.toml").write_text(RECIPE)
    return tmp_path


def add() -> None:
    picture(9).save("photos/9.png")


def remove() -> None:
    Path("photos/2.png").unlink()


def replace() -> None:
    picture(8).save("photos/2.png")


def rename_to_the_end() -> None:
    Path("photos/1.png").rename("photos/z.png")


def replace_held_out() -> None:
    picture(8).save("held_out/7.png")


CHANGES = {
    add: ("training data", "1 more: 9.png"),
    remove: ("training data", "1 fewer: 2.png"),
    replace: ("training data", "1 changed: 2.png"),
    rename_to_the_end: ("training data", "1 renamed: 1.png -> z.png"),
    replace_held_out: ("held-out images", "1 changed: 7.png"),
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_picture_is_noticed_by_resume_diff_and_compare(place, change):
    section, words = CHANGES[change]
    ganlab("run", "t.toml", "--name", "a", "--max-iterations", 2)
    ganlab("run", "t.toml", "--name", "whole")
    change()
    code, said = ganlab("resume", "runs/a")
    assert code == 2
    assert section in said and words in said and str(place / "photos") in said
    code, said = ganlab("diff", "t.toml", "runs/whole")
    assert "~ data." in said and "->" in said
    ganlab("run", "t.toml", "--name", "b")
    assert words in ganlab("diff", "runs/whole", "runs/b")[1]
    code, said = ganlab("compare", "runs/whole", "runs/b")
    assert code == 2 and words in said and section in said


def test_a_comparison_uses_no_run_that_was_made_on_other_data(place):
    compare = ("compare", "t.toml", "u.toml", "--seeds", "0", "--plan")
    Path("u.toml").write_text('extends = "t.toml"\n[plugins]\npixel_loss = { weight = 0.5 }\n')
    ganlab("run", "t.toml")
    assert "1 exist" in ganlab(*compare)[1]
    add()
    assert "0 exist" in ganlab(*compare)[1]
    Path("photos/9.png").unlink()
    assert "1 exist" in ganlab(*compare)[1]


def test_the_same_pixels_in_another_file_are_the_same_data(place):
    ganlab("run", "t.toml", "--name", "a", "--max-iterations", 2)
    picture(2).save("photos/2.png", compress_level=1)
    Path("photos/1.png").rename("photos/1a.png")  # the order stays
    code, said = ganlab("resume", "runs/a")
    assert code == 0, said
    ganlab("run", "t.toml", "--name", "b")
    said = ganlab("diff", "runs/a", "runs/b")[1]
    assert said.count("~") == 1 and "1 renamed: 1.png -> 1a.png; order and pixels stay" in said
    assert Path("runs/a/stats.jsonl").read_bytes() == Path("runs/b/stats.jsonl").read_bytes()


def test_accepted_data_are_told_on_the_page_and_never_used_again(place):
    ganlab("run", "t.toml", "--name", "a", "--max-iterations", 2)
    add()
    code, said = ganlab("resume", "runs/a", "--accept-data")
    assert code == 0 and "the data have changed" in said
    manifest = json.loads(Path("runs/a/manifest.json").read_text())
    assert manifest["data_changes"] == [{"iteration": 2, "changes": {"training": "1 more: 9.png"}}]
    page = Path("runs/a/report.html").read_text()
    assert "its training data changed at iteration 2: 1 more: 9.png" in page
    Path("u.toml").write_text('extends = "t.toml"\n[plugins]\npixel_loss = { weight = 0.5 }\n')
    assert "0 exist" in ganlab("compare", "t.toml", "u.toml", "--seeds", "0", "--plan")[1]


def test_data_are_not_accepted_when_the_command_is_refused(place):
    ganlab("run", "t.toml", "--name", "a", "--max-iterations", 2)
    add()
    code, said = ganlab("resume", "runs/a", "--accept-data", "--max-iterations", 1)
    assert code == 2 and "give a larger number" in said
    code, said = ganlab("resume", "runs/a")
    assert code == 2 and "1 more: 9.png" in said


@pytest.mark.parametrize("limit", [(), ("--max-iterations", 2)])
def test_a_run_that_ended_on_other_data_is_not_the_run_of_this_command(place, limit):
    again = ("run", "t.toml", "--continue", *limit)
    assert ganlab(*again)[0] == 0
    add()
    code, said = ganlab(*again)
    assert code == 2 and "training data" in said and "1 more: 9.png" in said
    code, said = ganlab(*again, "--accept-data")
    assert code == 0 and "the data have changed" in said
    shutil.rmtree("photos")  # a run that has ended needs no data
    code, said = ganlab(*again)
    assert code == 0 and "are not compared" in said


def test_data_that_change_while_a_comparison_runs_stop_it(place, monkeypatch):
    Path("u.toml").write_text('extends = "t.toml"\n[plugins]\npixel_loss = { weight = 0.5 }\n')
    ended, real = [], Training.train

    def train(*arguments, **more):
        if len(ended) == 2:
            add()
        ended.append(real(*arguments, **more))
        return ended[-1]

    monkeypatch.setattr(Training, "train", train)
    compare = ("compare", "t.toml", "u.toml", "--seeds", "0,1")
    code, said = ganlab(*compare)
    assert code == 2 and [one.refusal is None for one in ended] == [True, True, False]
    assert "the data have changed since the comparison began" in said and "1 more: 9.png" in said
    assert "4 runs; 0 exist, 0 to be continued, 4 to be made" in ganlab(*compare, "--plan")[1]


def test_runs_whose_pictures_were_only_renamed_are_one_arm(place):
    Path("u.toml").write_text('extends = "t.toml"\n[plugins]\npixel_loss = { weight = 0.5 }\n')
    for seed in (0, 1):
        for recipe in ("t", "u"):
            ganlab("run", f"{recipe}.toml", "--name", f"{recipe}-{seed}", "--seed", seed)
        Path("photos/1.png").replace("photos/1a.png") if seed == 0 else None
    code, said = ganlab("compare", *(f"runs/{recipe}-{seed}" for recipe in "tu" for seed in (0, 1)))
    assert code == 0 and "baseline" in said and "no seed in common" not in said


def test_any_two_arms_that_name_the_same_data_must_have_read_the_same(place):
    shutil.copytree("photos", "more")
    text = 'extends = "t.toml"\n[plugins]\nimage_folder = { path = "more" }\n'
    Path("v.toml").write_text(text)
    ganlab("run", "t.toml", "--name", "a")
    ganlab("run", "v.toml", "--name", "b")
    picture(9).save("more/9.png")
    ganlab("run", "v.toml", "--name", "c", "--set", "pixel_loss.weight=0.5")
    code, said = ganlab("compare", "runs/a", "runs/b", "runs/c")
    assert code == 2 and "c and b have different training data" in said


def test_a_new_run_cannot_accept_data(place):
    code, said = ganlab("run", "t.toml", "--accept-data")
    assert code == 2 and "--accept-data has no effect without --resume" in said


def test_the_run_folder_lists_the_items_and_the_manifest_their_digests(place):
    ganlab("run", "t.toml", "--name", "a")
    data: Data = json.loads(Path("runs/a/data.json").read_text())
    assert list(data["training"]["image_folder"]) == ["1.png", "2.png", "3.png"]
    assert list(data["held_out"]["image_folder"]) == ["7.png"]
    manifest = json.loads(Path("runs/a/manifest.json").read_text())
    assert manifest["data"] == digests(data)
    assert manifest["data"]["training"]["number"] == 3
    page = Path("runs/a/report.html").read_text()
    digest = manifest["data"]["training"]["digest"][:8]
    assert f"Data: 3 training items ({digest}), 1 held-out image (" in page


def test_a_held_out_picture_that_is_trained_on_is_told(place):
    shutil.copy("held_out/7.png", "photos/copy.png")
    code, said = ganlab("run", "t.toml", "--name", "a")
    assert code == 0 and "a held-out image is also in the training data" in said
    assert "7.png (there copy.png)" in said
    assert "7.png (there copy.png)" in Path("runs/a/report.html").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="names are UTF-8 there")
def test_images_whose_names_are_not_utf8_are_data_too(place):
    strange = os.fsdecode(b"\xe9.png")
    Path("held_out/7.png").rename(Path("held_out", strange))
    Path("photos/1.png").rename(Path("photos", strange))
    ganlab("run", "t.toml", "--name", "a", "--max-iterations", 2)
    found = json.loads(Path("runs/a/data.json").read_text())
    assert list(found["held_out"]["image_folder"]) == ["\\udce9.png"]
    Path("photos", strange).unlink()
    code, said = ganlab("resume", "runs/a")
    assert code == 2 and "1 fewer: \\udce9.png" in said


@pytest.mark.parametrize("text", [None, "{", "[1]", '{"training": {"image_folder": ["1.png"]}}',
                                  '{"training": {"image_folder": {"1.png": "ab"}}}'])  # fmt: skip
def test_without_its_list_of_data_a_run_is_resumed_on_equal_data_only(place, text):
    ganlab("run", "t.toml", "--name", "a", "--max-iterations", 2)
    listed = Path("runs/a/data.json")
    before = listed.read_text()
    listed.write_text(text) if text else listed.unlink()
    add()
    code, said = ganlab("resume", "runs/a")
    assert code == 2 and "3 training items" in said and "-> 4 training items" in said
    assert "data.json, which listed them, is missing or damaged" in said
    Path("photos/9.png").unlink()
    assert ganlab("resume", "runs/a")[0] == 0
    assert listed.read_text() == before


@pytest.mark.parametrize("text", [None, "[]"])
def test_a_run_without_its_manifest_is_compared_with_its_list_of_data(place, text):
    ganlab("run", "t.toml", "--name", "a", "--max-iterations", 2)
    manifest = Path("runs/a/manifest.json")
    manifest.write_text(text) if text else manifest.unlink()
    add()
    code, said = ganlab("resume", "runs/a")
    assert code == 2 and "1 more: 9.png" in said


def test_a_run_folder_that_does_not_say_its_data_is_told_of(place):
    ganlab("run", "t.toml", "--name", "a", "--max-iterations", 2)
    Path("runs/a/data.json").unlink()
    manifest = json.loads(Path("runs/a/manifest.json").read_text())
    del manifest["data"]
    Path("runs/a/manifest.json").write_text(json.dumps(manifest))
    code, said = ganlab("resume", "runs/a")
    assert code == 0 and "runs/a does not say on which data it was started" in said


def test_meant_differences_are_told_at_the_head_and_compared(place):
    shutil.copytree("photos", "more")
    picture(9).save("more/9.png")
    Path("u.toml").write_text('extends = "t.toml"\n[plugins]\nimage_folder = { path = "more" }\n')
    code, said = ganlab("compare", "t.toml", "u.toml", "--seeds", "0,1")
    assert code == 0
    assert said.count("Different training data: in u, compared with t, 1 more: 9.png.") == 1
    [page] = Path("runs").glob("*.html")
    head = page.read_text().partition("<main>")[0]
    assert "Different training data: in u, compared with t, 1 more: 9.png." in head


def test_an_arm_can_be_compared_on_other_data_when_that_is_accepted(place):
    ganlab("run", "t.toml", "--name", "a")
    add()
    ganlab("run", "t.toml", "--name", "b")
    assert ganlab("compare", "runs/a", "runs/b")[0] == 2
    code, said = ganlab("compare", "runs/a", "runs/b", "--accept-data")
    assert code == 0 and "Different training data: in b, compared with a, 1 more: 9.png." in said


def test_initial_weights_are_data(place):
    ganlab("run", "t.toml", "--name", "first")
    Path("w.safetensors").write_bytes(Path("runs/first/generator.safetensors").read_bytes())
    Path("u.toml").write_text(
        'extends = "t.toml"\n[plugins]\ninitial_weights = { generator = "w.safetensors" }\n'
    )
    ganlab("run", "u.toml", "--name", "a", "--max-iterations", 2)
    data = json.loads(Path("runs/a/data.json").read_text())
    assert list(data["weights"]["initial_weights"]) == ["w.safetensors"]
    ganlab("run", "t.toml", "--name", "other", "--seed", 1)
    Path("w.safetensors").write_bytes(Path("runs/other/generator.safetensors").read_bytes())
    code, said = ganlab("resume", "runs/a")
    assert code == 2 and "weights of initial_weights" in said and "1 changed: w.safetensors" in said


def test_two_files_of_one_name_are_two_items(place):
    folders = [Path("G"), Path("D")]
    for number, folder in enumerate(folders):
        folder.mkdir()
        Path(folder, "w.bin").write_bytes(bytes([number]))
    found = file_digests(*(folder / "w.bin" for folder in folders))
    assert list(found) == ["w.bin", "w.bin (2)"] and len(set(found.values())) == 2


def test_initial_weights_of_one_file_name_are_both_data(place):
    ganlab("run", "t.toml", "--name", "first")
    Path("G").mkdir()
    Path("D").mkdir()
    shutil.copy("runs/first/generator.safetensors", "G/w.safetensors")
    recipe = load_recipe(Path("t.toml"))
    save_file(assemble(recipe, torch.device("cpu")).D.state_dict(), "D/w.safetensors")
    Path("u.toml").write_text(
        'extends = "t.toml"\n[plugins.initial_weights]\n'
        'generator = "G/w.safetensors"\ndiscriminator = "D/w.safetensors"\n'
    )
    ganlab("run", "u.toml", "--name", "a", "--max-iterations", 2)
    ganlab("run", "t.toml", "--name", "other", "--seed", 1)
    shutil.copy("runs/other/generator.safetensors", "G/w.safetensors")
    code, said = ganlab("resume", "runs/a")
    assert code == 2 and "1 changed: w.safetensors" in said


def test_data_that_a_run_folder_does_not_list_are_told_of_in_diff_and_report(place):
    ganlab("run", "t.toml", "--name", "a")
    ganlab("run", "t.toml", "--name", "b")
    Path("runs/a/data.json").unlink()
    said = ganlab("diff", "runs/a", "runs/b")[1]
    assert "the data are not compared: the run folder of a does not list them" in said
    ganlab("report", "runs/a")
    page = Path("runs/a/report.html").read_text()
    assert "Data unknown: not listed in the run folder of a." in page


def test_a_small_image_that_the_share_holds_out_is_told_of_with_a_remedy(place):
    for seed in (1, 2, 3):
        picture(seed).resize((20, 20)).save(f"photos/{seed}.png")
    Path("v.toml").write_text(RECIPE.replace('evaluation_path = "held_out", ', ""))
    code, said = ganlab("run", "v.toml")
    assert code == 2 and "image_folder: the image 2.png is held out, and too small" in said
    assert "Remove it, or name other held-out images" in said


def test_a_run_without_a_held_out_image_says_so_at_its_start_and_end(place):
    options = RECIPE.replace('evaluation_path = "held_out"', "held_out_share = 0")
    Path("v.toml").write_text(options)
    code, said = ganlab("run", "v.toml")
    assert code == 0
    assert "note: no image is held out: there will be no scores, no sample pictures" in said
    assert "no scores and no pictures: no image was held out" in said


def write_source(hook: str = "", answer: str = "") -> None:
    """A recipe with a data plugin of its own; one of its hooks, if named, returns `answer`."""
    more = f"    @hookimpl\n    def {hook}(self):\n        return {answer}\n" if hook else ""
    Path("source.py").write_text(
        "import torch\nfrom ganlab import Plugin, hookimpl\n\n\n"
        'class Source(Plugin):\n    """Noise."""\n\n'
        "    @hookimpl\n    def sample_real(self, batch_size, device):\n"
        "        return torch.rand(batch_size, 3, 16, 16, generator=self.rng, device=device)\n"
        + more
    )
    given = 'image_folder = { path = "photos", evaluation_path = "held_out", crop = 16 }'
    Path("s.toml").write_text(RECIPE.replace(given, 'source = { use = "./source.py" }'))


@pytest.mark.parametrize("answer", ['["a"]', '{"a": 3}', '{1: "b"}', '"abc"'])
def test_a_digest_of_the_wrong_type_is_refused_with_the_plugins_name(place, answer):
    write_source("data_digest", answer)
    code, said = ganlab("run", "s.toml")
    assert code == 2 and "source: data_digest must return a dict" in said
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "answer",
    ['{"a": torch.rand(3, 32, 32)}', '{"a": torch.zeros(32, 32, 3, dtype=torch.uint8)}',
     "[torch.zeros(3, 32, 32, dtype=torch.uint8)]", '{"a": "b"}'],
)  # fmt: skip
def test_a_held_out_image_of_the_wrong_type_is_refused_with_the_plugins_name(place, answer):
    write_source("evaluation_images", answer)
    code, said = ganlab("run", "s.toml")
    assert code == 2 and "source: evaluation_images must return a dict" in said


def test_a_source_that_does_not_tell_its_data_is_named(place):
    write_source()
    said = ganlab("check", "s.toml")[1]
    assert "source does not say what its data are (hook data_digest)" in said


# --- digests -------------------------------------------------------------------------------------


def data(section: str, **items: str) -> Data:
    return {section: {"plugin": items}}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ({"a": "1", "b": "2"}, {"a": "1", "b": "2", "c": "3", "d": "4"}, "2 more: c, d"),
        ({"a": "1", "b": "2"}, {"b": "2"}, "1 fewer: a"),
        ({"a": "1", "b": "2"}, {"a": "1", "b": "3"}, "1 changed: b"),
        ({"a": "1", "b": "2"}, {"b": "2", "c": "1"}, "1 renamed: a -> c"),
        ({"a": "1", "b": "2"}, {"b": "2", "a": "1"}, "the same items in another order"),
        ({"a": "1", "b": "2"}, {"a": "2", "b": "1"}, "2 changed: a, b"),
        ({"a": "1"}, {f"{i}": f"x{i}" for i in range(7)},
         "7 more: 0, 1, 2, 3 and 3 others; 1 fewer: a"),
        ({"a": "1", "b": "1"}, {"c": "1"}, "1 fewer: b; 1 renamed: a -> c"),
    ],
)  # fmt: skip
def test_differences_are_told_in_words(before, now, words):
    assert differences(data("training", **before), data("training", **now)) == {"training": words}


def test_names_do_not_count_for_training_but_for_scores():
    one, other = ({"a": "1", "b": "2"}, {"a": "1", "c": "2"})
    assert differences(data("training", **one), data("training", **other)) == {}
    assert renamed(data("training", **one), data("training", **other)) == "1 renamed: b -> c"
    assert differences(data("held_out", **one), data("held_out", **other)) == {
        "held_out": "1 renamed: b -> c"
    }


def test_a_held_out_image_is_found_under_another_name():
    both = data("training", a="1", b="2") | data("held_out", x="2", a="1", y="3")
    assert trained_on(both) == ["x (there b)", "a"]


def test_an_image_has_the_digest_of_its_pixels_and_its_size():
    image = torch.arange(3 * 4 * 6, dtype=torch.uint8).reshape(3, 4, 6)
    assert image_digest(image) == ImageStore.of([("a", image)]).digests["a"]
    assert image_digest(image) != image_digest(image.reshape(3, 6, 4))
    changed = image.clone()
    changed[2, 3, 5] += 1
    assert image_digest(changed) != image_digest(image)
    grey = image[:1]
    assert image_digest(grey) == image_digest(grey.repeat(3, 1, 1))


def test_a_digest_of_contents_depends_on_value_type_and_order():
    found = {
        content_digest(*parts)
        for parts in [(1, 2), (2, 1), (12,), ("1", 2), (torch.tensor([1, 2]),),
                      (torch.tensor([[1, 2]]),), (torch.tensor([1.0, 2.0]),)]
    }  # fmt: skip
    assert len(found) == 7
    assert content_digest(torch.tensor([1, 2])) == content_digest(torch.tensor([1, 2]))


def test_a_file_that_changed_has_another_digest(tmp_path):
    file = tmp_path / "w.bin"
    assert file_digests(file) == {"w.bin": "missing"}
    file.write_bytes(b"one")
    first = file_digests(file)
    file.write_bytes(b"other")
    assert file_digests(file) != first


def test_many_renamed_items_are_told_without_a_search_for_each():
    before = data("training", **{f"a{i}": str(i) for i in range(20_000)})
    now = data("training", **{f"b{i}": str(i) for i in reversed(range(20_000))})
    words = differences(before, now)["training"]
    assert words.startswith("20,000 renamed: a0 -> b0, a1 -> b1") and words.endswith("others")
