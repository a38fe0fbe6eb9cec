"""The functions for scripts and notebooks do what the commands do."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from marks import posix
from tiny import TINY

import ganlab
from ganlab import api
from ganlab.cli import main
from ganlab.images.files import read_image, write_png
from ganlab.stopping import Stopped

HELD_OUT = '''\
import torch
from ganlab import Plugin, hookimpl


class HeldOut(Plugin):
    """One held-out image."""

    @hookimpl
    def evaluation_images(self):
        rng = torch.Generator().manual_seed(0)
        return {"<b>": torch.randint(0, 256, (3, 48, 48), dtype=torch.uint8, generator=rng)}
'''


COUNTER = '''\
from ganlab import Plugin, hookimpl
from pydantic import PrivateAttr


class Counter(Plugin):
    """Has a state that no run resets."""

    _count: int = PrivateAttr(0)

    @hookimpl
    def generator_loss(self, fake):
        self._count += 1
        return {"G/count": self._count * fake.mean()}
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny recipe, which has one held-out image, and a finished run of it."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "held_out.py").write_text(HELD_OUT)
    (folder / "counter.py").write_text(COUNTER)
    more = "held_out = { use = './held_out.py' }\ncounter = { use = './counter.py' }\n"
    (folder / "tiny.toml").write_text(
        TINY.replace("evaluate_every = 100", "evaluate_every = 2") + more
    )
    api.run(folder / "tiny.toml", name="done", runs=folder / "runs", device="cpu")
    return folder


@pytest.fixture
def recipe(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe; its folder is the current one."""
    monkeypatch.chdir(folder)
    return folder / "tiny.toml"


def command(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def results(run: Path) -> dict[str, bytes]:
    files = ["recipe.toml", "stats.jsonl", "scores.jsonl", "generator.safetensors"]
    return {name: (run / name).read_bytes() for name in files}


def test_a_run_is_that_of_the_command_and_a_loaded_recipe_can_be_run_twice(recipe: Path) -> None:
    changes = ["--set", "gradient_penalty.weight=5.0", "--set", "seed=1"]
    command("run", recipe, *changes, "--name", "theirs")
    loaded = api.load_recipe(recipe, {"gradient_penalty.weight": 5.0, "seed": 1})
    runs = [api.run(loaded, device="cpu"), api.run(loaded, device="cpu", name="again")]
    assert [run.path for run in runs] == [Path("runs/tiny-1"), Path("runs/again")]
    for run in runs:
        assert results(run.path) == results(Path("runs/theirs"))
        assert (run.state, run.iteration) == ("done", 4)


def test_a_run_is_opened_by_its_name_and_has_its_figures(recipe: Path) -> None:
    run = api.Run.open("done")
    lines = [json.loads(line) for line in run.stats.read_text().splitlines()]
    last = {k: v for line in lines if line["iteration"] == 4 for k, v in line.items()}
    assert run.series["G/pixel_loss"].values[-1] == last["G/pixel_loss"]
    assert list(run.series["G/pixel_loss"].iterations) == [1, 2, 3, 4]
    assert run.scores["psnr_y"] == last["evaluation/psnr_y"]
    assert run.bicubic.keys() == run.scores.keys()
    assert repr(run) == f"<Run {Path('runs/done')}: done at iteration 4>"


def test_a_run_that_was_stopped_and_made_longer_is_that_of_the_longer_recipe(recipe: Path) -> None:
    without = {"counter": False}  # whose state no checkpoint has
    short = api.run(recipe, without, max_iterations=1, device="cpu")
    assert (short.state, short.iteration) == ("stopped", 1)
    whole = api.resume(short, {"iterations": 6}, device="cpu")
    assert (whole.state, whole.iteration) == ("done", 6)
    assert short.state == "stopped"  # it shows the moment at which it was read
    straight = api.run(recipe, without | {"iterations": 6}, device="cpu")
    weights = [run.path / "generator.safetensors" for run in (whole, straight)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_photographs_are_enlarged_as_by_the_command(recipe: Path) -> None:
    run = api.Run.open("done")
    Path("photos").mkdir()
    for name in "ab":
        image = torch.randint(0, 256, (3, 9, 13), dtype=torch.uint8)
        write_png(image, Path("photos", f"{name}.png"))
    made = api.upscale(run, "photos", "ours", device="cpu")
    assert made == [Path("ours/a.png"), Path("ours/b.png")]
    command("upscale", run.path, "photos", "-o", "theirs", "--device", "cpu")
    for file in made:
        assert file.read_bytes() == Path("theirs", file.name).read_bytes()
        assert read_image(file).shape == (3, 36, 52)
    assert api.upscale(run.path, "photos/a.png", "ours") == made[:1]  # passed over, but told


def test_a_comparison_has_the_tables_of_the_command(recipe: Path) -> None:
    Path("plain.toml").write_text('extends = "tiny.toml"\n[plugins]\ngradient_penalty = false\n')
    found = api.compare(recipe, "plain.toml", seeds=range(1), device="cpu", figures=["psnr_y"])
    assert [arm.name for arm in found.comparison.arms] == ["tiny", "plain"]
    assert found.lost == []
    assert found.page.is_file()
    printed = json.loads(command("compare", recipe, "plain.toml", "--seeds", "0", "--figure",
                                 "psnr_y", "--device", "cpu", "--json"))  # fmt: skip
    assert json.loads(json.dumps(found.as_data())) == printed
    shown = found._repr_html_()
    row = found.comparison.tables[0].rows[1]
    assert row.words in shown and "<td>plain</td>" in shown and str(found.page) in shown


def test_a_run_shows_itself_with_pictures_and_without_markup_of_strangers(recipe: Path) -> None:
    shutil.copytree("runs/done", "runs/strange")
    run = api.Run.open("strange")
    shown = run._repr_html_()
    assert f"{run.scores['psnr_y']:.4g}" in shown and f"{run.bicubic['psnr_y']:.4g}" in shown
    assert shown.count("data:image/png;base64,") == 4
    assert shown.count("<polyline") >= 3  # the evaluations, and losses
    status = run.path / "status.json"
    status.write_text(status.read_text().replace('"message": ""', '"message": "<script>\\u202e"'))
    shown = api.Run.open(run.path)._repr_html_()
    assert "&lt;script&gt;\\u202e" in shown and "<script" not in shown


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        (lambda r: api.load_recipe(r, {"gradient_penalty.weigth": 1}), "did you mean 'weight'"),
        (lambda r: api.load_recipe(r, {"seed": None}), "overrides\\['seed'\\] = None: TOML has no"),
        (lambda r: api.load_recipe(r, "seed=1"), "give a dict, or a list"),
        (lambda r: api.run(api.load_recipe(r), {"seed": 1}), "overrides and data to load_recipe"),
        (lambda r: api.run("absent.toml"), "absent.toml"),
        (lambda r: api.Run.open("absent"), "absent: not a run"),
        (lambda r: api.upscale("absent", "x.png", tile=3), "a tile has at least 64 pixels"),
        (lambda r: api.compare(r), "at least two"),
        (lambda r: api.compare(r, "done", seeds="1..0"), "seeds"),
    ],
)
def test_a_mistake_is_an_error_of_one_message(recipe: Path, call: Any, fault: str) -> None:
    with pytest.raises(api.RecipeError, match=fault):
        call(recipe)


def test_the_error_of_a_plugin_names_it(recipe: Path) -> None:
    Path("broken.py").write_text(
        "from ganlab import Plugin, hookimpl\n\n\nclass Broken(Plugin):\n    @hookimpl\n"
        "    def iteration_end(self):\n        raise KeyError('lost')\n"
    )
    with pytest.raises(ganlab.GanlabError, match="broken"):
        api.run(recipe, {"broken": {"use": "./broken.py"}}, device="cpu")


@posix
@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Stopped)]
)
def test_a_signal_saves_the_run_and_then_goes_on_to_the_program(
    recipe: Path, number: int, raised: type[BaseException]
) -> None:
    Path("struck.py").write_text(
        "import signal\n\nfrom ganlab import Plugin, hookimpl\n\n\nclass Struck(Plugin):\n"
        "    @hookimpl\n    def iteration_end(self, run):\n        if run.iteration == 1:\n"
        f"            signal.raise_signal({int(number)})\n"
    )
    with pytest.raises(raised, match=r"after the run was saved; api\.resume"):
        api.run(recipe, {"struck": {"use": "./struck.py"}}, device="cpu", name=raised.__name__)
    cut = api.Run.open(raised.__name__)
    assert (cut.state, cut.iteration) == ("stopped", 2)
    assert api.resume(cut, device="cpu").state == "done"


def test_a_tables_nested_value_is_given_as_a_dict(recipe: Path) -> None:
    noise = {"sigma": {"from": 0.1, "to": 0.0, "over": 3}}
    loaded = api.load_recipe(recipe, {"instance_noise": noise, "num_discriminators": 1})
    assert loaded.plugins["instance_noise"].sigma.at(3) == 0.0


@pytest.mark.long  # a new Python imports torch
def test_the_module_is_there_without_an_import_of_its_own_and_not_before_it_is_used() -> None:
    code = "import sys, ganlab; assert 'torch' not in sys.modules; print(ganlab.api.Run.open)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "Run.open" in done.stdout, done.stderr


USE = """\
from pathlib import Path

import ganlab
from ganlab import api

recipe: api.Recipe = api.load_recipe("tiny.toml", {"seed": 1})
run: api.Run = ganlab.api.run(recipe, device="cpu", max_seconds=1.5)
value: float = run.scores["psnr_y"]
files: list[Path] = api.upscale(run, ["a.png"], bits=16)
compared: api.Compared = api.compare(run, "tiny.toml", seeds=range(2))
api.run(recipe, seed=1)
api.upscale(run, 5)
"""


@pytest.mark.long
def test_a_type_checker_knows_the_functions(tmp_path: Path) -> None:
    (tmp_path / "use.py").write_text(USE)
    command = [sys.executable, "-m", "mypy", "--strict", "--ignore-missing-imports", "use.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    faults = [
        line.partition(": error: ")[0] for line in done.stdout.splitlines() if ": err" in line
    ]
    assert faults == ["use.py:11", "use.py:12"], done.stdout


@pytest.mark.parametrize("page", ["README.md", "docs/how-to/python.md"])
def test_the_pages_name_functions_that_are_there(page: str) -> None:
    text = (Path(__file__).parents[1] / page).read_text()
    named = set(re.findall(r"\bapi\.(\w+)", text)) - {"py"}
    assert "run" in named
    assert named <= {*api.__all__, "Generator"}  # which needs an extra
    attributes = set(re.findall(r"\brun\.(\w+)", text)) - {"py", "path"}
    assert attributes <= {*dir(api.Run)}
