"""The command that ganlab recommends next can be given, and works."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from ganlab.cli import main
from ganlab.images.files import write_png

pytestmark = pytest.mark.usefixtures("few_samples")

ROOT = Path(__file__).parents[1]
BAD = '''\
from pathlib import Path

from ganlab import Plugin, hookimpl


class Bad(Plugin):
    """Not finite from its second iteration on, or raises an error while a file exists."""

    fails: str = ""

    @hookimpl
    def iteration_end(self, run, losses):
        if self.fails and Path(self.fails).exists():
            raise OSError("no space left")
        if not self.fails and run.iteration == 1:
            next(run.G.parameters()).data.fill_(float("nan"))
'''


FIGURE = '''\
from ganlab import Plugin, hookimpl


class Size(Plugin):
    """A figure of any run."""

    @hookimpl
    def evaluate(self, generator):
        return {"size": float(next(generator.parameters()).abs().mean())}
'''


def ganlab(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


def recommended(result: Result, **given: Path) -> list[str]:
    """The arguments of the last command that a result recommends, with the user's own words."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("next: ")]
    program, *arguments = shlex.split(lines[-1].removeprefix("next: "))
    assert program == "ganlab"
    return [str(given.get(word, word)) for word in arguments]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "own photos"
    folder.mkdir()
    write_png((torch.rand(3, 48, 48) * 255).byte(), folder / "a.png")
    return folder


@pytest.fixture
def bad(tiny: Path) -> Path:
    (tiny.parent / "bad.py").write_text(BAD)
    tiny.write_text(tiny.read_text() + 'bad = { use = "./bad.py" }\n')
    return tiny


def works(runs: Path, photos: Path) -> list[str]:
    """Ask `ganlab runs` for the next command, give it, and return it."""
    command = recommended(ganlab("runs", "--runs", runs), FOLDER=photos, IMAGE=photos / "a.png")
    result = ganlab(*command)
    assert result.exit_code == 0, result.output
    return command


def test_after_a_run_is_done_it_is_evaluated(tiny: Path, tmp_path: Path, photos: Path) -> None:
    runs = tmp_path / "my runs"
    done = ganlab("run", tiny, "--runs", runs)
    assert works(runs, photos)[:2] == ["eval", str(runs / "tiny-1")]
    upscaled = ganlab(*recommended(done, IMAGE=photos / "a.png"), "-o", tmp_path / "out")
    assert upscaled.exit_code == 0, upscaled.output


def test_after_a_toy_its_page_is_written(tmp_path: Path, photos: Path) -> None:
    toy = ROOT / "recipes" / "toy" / "ring_gan.toml"
    done = ganlab("run", toy, "--set", "iterations=4", "--runs", tmp_path / "runs")
    assert works(tmp_path / "runs", photos)[0] == "report"
    assert ganlab(*recommended(done)).exit_code == 0


@pytest.mark.parametrize("evaluate_every", [1, 100])
def test_after_a_run_that_diverged_its_recipe_is_checked(
    evaluate_every: int, bad: Path, tmp_path: Path, photos: Path
) -> None:
    settings = ("--set", f"evaluate_every={evaluate_every}")
    diverged = ganlab("run", bad, "--runs", tmp_path / "runs", *settings)
    assert diverged.exit_code == 3, diverged.output
    assert works(tmp_path / "runs", photos)[0] == "check"
    assert ganlab(*recommended(diverged)).exit_code == 0


def test_after_a_run_that_failed_its_recipe_is_checked(
    bad: Path, tmp_path: Path, photos: Path
) -> None:
    full = tmp_path / "full"
    full.touch()
    ganlab("run", bad, "--runs", tmp_path / "runs", "--set", f"bad.fails='{full}'")
    full.unlink()
    assert works(tmp_path / "runs", photos)[0] == "check"


def test_a_stopped_run_and_a_killed_run_are_resumed(
    tiny: Path, tmp_path: Path, photos: Path
) -> None:
    runs = tmp_path / "runs"
    ganlab("run", tiny, "--runs", runs, "--max-iterations", 1)
    status = runs / "tiny-1" / "status.json"
    stopped = status.read_text()
    assert works(runs, photos)[0] == "resume"
    status.write_text(json.dumps(json.loads(stopped) | {"state": "running"}))
    assert works(runs, photos)[0] == "resume"


def test_a_run_that_another_process_trains_is_looked_at(
    tiny: Path, tmp_path: Path, photos: Path
) -> None:
    from ganlab.runs.folder import RunFolder

    ganlab("run", tiny, "--runs", tmp_path / "runs")
    folder = RunFolder(tmp_path / "runs" / "tiny-1")
    folder.write_status("running", iteration=2, of=4)
    with folder.lock():
        assert works(tmp_path / "runs", photos)[0] == "report"


def test_a_difference_is_followed_by_a_comparison_that_is_possible(
    tiny: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.toml"
    other.write_text(tiny.read_text().replace("weight = 10.0", "weight = 5.0"))
    assert recommended(ganlab("diff", tiny, other))[0] == "compare"
    (tmp_path / "sub").mkdir()
    same_name = tmp_path / "sub" / "tiny.toml"
    same_name.write_text(other.read_text())
    assert "next:" not in ganlab("diff", tiny, same_name).stderr
    for seed in (0, 1):
        ganlab("run", tiny, "--runs", tmp_path / "runs", "--seed", seed)
    two_seeds = ganlab("diff", tmp_path / "runs" / "tiny-1", tmp_path / "runs" / "tiny-2")
    assert "~ seed" in two_seeds.stdout
    assert "next:" not in two_seeds.stderr


def test_the_plugin_that_is_recommended_is_one_of_those_shown() -> None:
    command = recommended(ganlab("plugins", "--hook", "penalty"))
    assert command[0] == "plugins"
    shown = ganlab(*command)
    assert "hooks: " in shown.stdout
    assert recommended(shown) == ["plugins", "check", command[1]]


@pytest.mark.parametrize(
    "file", sorted((ROOT / "ganlab" / "cli").glob("*.py")), ids=lambda f: f.stem
)
def test_a_command_is_recommended_as_words_so_that_paths_are_quoted(file: Path) -> None:
    assert not re.search(r"next_is\(f?[\"']ganlab", file.read_text())


def test_no_best_generator_is_told_as_such(tiny: Path, tmp_path: Path, photos: Path) -> None:
    ganlab("run", tiny, "--runs", tmp_path / "runs", "--max-iterations", 1)
    result = ganlab("eval", tmp_path / "runs" / "tiny-1", "--data", photos, "--weights", "best")
    assert result.exit_code == 2
    assert "it has no best generator yet" in result.stderr


def test_a_comparison_with_a_run_that_diverged_exits_with_1_and_names_it(
    tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text(BAD)
    (tmp_path / "size.py").write_text(FIGURE)
    tiny.write_text(tiny.read_text() + 'size = { use = "./size.py" }\n')
    bad = tmp_path / "worse.toml"
    bad.write_text(tiny.read_text() + 'bad = { use = "./bad.py" }\n')
    command = ("compare", tiny, bad, "--seeds", "0", "--runs", tmp_path / "runs")
    for _ in range(2):  # made, and used again
        result = ganlab(*command)
        assert result.exit_code == 1, result.output
        assert "without figures: worse-1 (diverged); exit code 1" in result.stderr
        assert "worse: the run diverged and gave no figure." in result.stdout
    made = [tmp_path / "runs" / name for name in ("tiny-1", "worse-1")]
    assert ganlab("compare", *made, "--runs", tmp_path / "runs").exit_code == 1
    ablation = ganlab("ablate", bad, "--without", "bad", "--seeds", "0", "--runs", tmp_path / "r")
    assert ablation.exit_code == 1
