"""`ganlab pack` and `verify`: a run is handed on, and what was handed on is run again."""

import contextlib
import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from marks import posix
from packed import changed_json, forged, forged_bytes
from safetensors import safe_open
from safetensors.torch import save

from ganlab.cli import main
from ganlab.commands.agreement import Agreement, compare_logs, logged_iterations, read_figures
from ganlab.commands.verify import Verification
from ganlab.images.files import write_png
from ganlab.tensor_files import read_safetensors, seal

Command = Callable[..., subprocess.CompletedProcess[str]]

RECIPE = """\
iterations = 12
batch_size = 2
evaluate_every = 5
checkpoint_every = 4
report_every = 1000
watch_every = 4

[plugins]
image_folder = { path = "photos", evaluation_path = "held_out", crop = 16 }
bicubic = {}
srresnet = { width = 8, num_blocks = 1 }
patch_discriminator = { width = 4, num_layers = 1 }
bce = {}
pixel_loss = { kind = "mse" }
instance_noise = { sigma = { from = 0.1, to = 0.0, over = 12 } }
pretraining = { iterations = 4 }
ema = { decay = 0.9 }
counter = { use = "./counter.py" }
"""

# It has a state and draws, it leaves a trace when it is imported, and it pulls the plug on request.
COUNTER = '''\
import os
import signal
from pathlib import Path

import torch
from pydantic import PrivateAttr

from ganlab import Plugin, hookimpl

if trace := os.environ.get("LEAVE_A_TRACE"):
    Path(trace).touch()


class Counter(Plugin):
    """Adds a loss that depends on a running state and on a random draw."""

    _sum: float = PrivateAttr(0.0)

    @hookimpl
    def generator_loss(self, fake):
        noise = torch.rand((), generator=self.rng)
        return {"G/counter": (fake.mean() - self._sum - noise).square()}

    @hookimpl
    def iteration_end(self, run, losses):
        self._sum = 0.9 * self._sum + 0.1 * losses["G/counter"].item()
        if str(run.iteration) == os.environ.get("PULL_THE_PLUG_AT"):
            os.kill(os.getpid(), signal.SIGKILL)

    def state_dict(self):
        return {"sum": self._sum}

    def load_state_dict(self, state):
        self._sum = state["sum"]
'''


def invoke(*arguments: object, cwd: Path, code: int = 0) -> Result:
    with contextlib.chdir(cwd):
        result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the person who made the run `whole` and packed it as whole.zip."""
    folder = tmp_path_factory.mktemp("home")
    generator = torch.Generator().manual_seed(0)
    for part in ("photos", "held_out"):
        (folder / part).mkdir()
        for name in "ab":
            image = torch.randint(0, 256, (3, 40, 48), dtype=torch.uint8, generator=generator)
            write_png(image, folder / part / f"{name}.png")
    (folder / "game.toml").write_text(RECIPE)
    (folder / "counter.py").write_text(COUNTER)
    invoke("run", "game.toml", "--name", "whole", cwd=folder)
    invoke("pack", "whole", cwd=folder)
    return folder


@pytest.fixture
def archive(home: Path) -> Path:
    return home / "whole.zip"


def data_of(home: Path) -> list[str]:
    return [
        "--set", f"image_folder.path={home / 'photos'}",
        "--set", f"image_folder.evaluation_path={home / 'held_out'}",
    ]  # fmt: skip


def test_a_run_is_repeated_to_the_last_bit_from_its_file_alone(
    home: Path, archive: Path, tmp_path: Path, ganlab: Command
) -> None:
    (tmp_path / "whole.zip").write_bytes(archive.read_bytes())
    done = ganlab(
        "verify", "whole.zip", "--trust-code", *data_of(home), cwd=tmp_path
    )  # a process of its own, in another folder
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:4] == [
        "same versions, machine and code",
        "running iterations 1 to 12 again, of 12",
        "same data",
    ]
    assert "generator.safetensors: equal to the last bit" in done.stdout
    assert done.stdout.rstrip().endswith("values of 12 iterations, equal in every digit")
    assert [file.name for file in tmp_path.iterdir()] == ["whole.zip"]


def test_what_is_compared_is_every_logged_value(home: Path, archive: Path) -> None:
    result = invoke("verify", archive, "--trust-code", "--json", cwd=home)
    figures = {one["figure"]: one["values"] for one in json.loads(result.stdout)["figures"]}
    assert figures["G/counter"] == 12
    assert figures["D/adversarial"] == 8  # after 4 iterations of pretraining
    assert figures["evaluation/psnr_y"] == 3
    assert figures["images/psnr_y"] == 6  # two held-out images, three evaluations
    assert figures["bicubic/psnr_y"] == 2


def test_losses_are_compared_before_the_run_reported_any(home: Path, archive: Path) -> None:
    result = invoke("verify", archive, "--trust-code", "--iterations", 3, cwd=home)
    assert "running iterations 1 to 3 again, of 12" in result.stdout
    (later,) = [line for line in result.stdout.splitlines() if "not reached" in line]
    assert "D/adversarial" in later
    assert later.endswith("(--iterations 6)")  # where the game is watched first
    assert "values of 3 iterations, equal in every digit" in result.stdout
    assert "generator.safetensors" not in result.stdout  # of iteration 12
    assert "verify" in result.stderr.splitlines()[-1]


def test_at_least_one_logged_line_is_reached(home: Path, archive: Path, tmp_path: Path) -> None:
    def without_the_first(text: str) -> str:
        return "".join(
            line for line in text.splitlines(keepends=True) if json.loads(line)["iteration"] > 6
        )

    sparse = forged(archive, tmp_path / "sparse.zip", "stats.jsonl", without_the_first)
    command = ["verify", sparse, "--trust-code", "--iterations", 2]
    out = invoke(*command, cwd=home, code=1).stdout  # the first six are missing in the file
    assert "--iterations 2: figures were logged from iteration 7 to 12" in out
    assert "running iterations 1 to 7 again, of 12" in out
    assert re.search(r"^G/pixel_loss +1 +one side only +one side only +1$", out, flags=re.MULTILINE)
    assert out.splitlines()[-1].startswith("not repeated: ")


def test_packing_a_run_again_gives_the_same_bytes(home: Path, archive: Path) -> None:
    invoke("pack", "whole", "-o", "second.zip", cwd=home)
    assert (home / "second.zip").read_bytes() == archive.read_bytes()


def test_a_file_holds_no_data_and_no_place_of_its_machine(home: Path, archive: Path) -> None:
    invoke("pack", "whole", "--weights", "-o", "heavy.zip", cwd=home)
    with zipfile.ZipFile(home / "heavy.zip") as opened:
        names = set(opened.namelist())
        content = b"".join(opened.read(name) for name in names)
    assert names == {
        "pack.json", "recipe.toml", "manifest.json", "status.json", "data.json", "counter.py",
        "stats.jsonl", "scores.jsonl", "timing.jsonl", "verdicts.jsonl",
        "generator.safetensors", "best.safetensors",
    }  # fmt: skip
    assert str(home).encode() not in content
    assert str(Path.home()).encode() not in content
    with zipfile.ZipFile(home / "heavy.zip") as opened:
        recipe = opened.read("recipe.toml").decode()
        opened.extract("generator.safetensors", home)
    assert 'evaluation_path = "held_out"' in recipe
    with safe_open(home / "generator.safetensors", "pt") as weights:
        about = json.loads(weights.metadata()["ganlab"])
    assert (about["iteration"], about["recipe"]) == (12, recipe)


def test_every_installed_package_is_recorded(home: Path) -> None:
    packages = json.loads((home / "runs" / "whole" / "manifest.json").read_text())["packages"]
    assert {"torch", "safetensors", "typing-extensions"} <= packages.keys()
    assert packages["torch"].partition("+")[0] == torch.__version__.partition("+")[0]


def test_code_in_a_file_is_not_run_without_trust(
    home: Path, archive: Path, tmp_path: Path, ganlab: Command
) -> None:
    trace = tmp_path / "trace"
    done = ganlab("verify", archive, *data_of(home), cwd=tmp_path, LEAVE_A_TRACE=str(trace))
    assert done.returncode == 2
    assert "same versions, machine and code" in done.stdout
    assert "counter.py, sha256 " in done.stderr
    assert "--trust-code" in done.stderr
    assert not trace.exists()
    done = ganlab("verify", archive, *data_of(home), "--trust-code", "--iterations", 1,
                  cwd=tmp_path, LEAVE_A_TRACE=str(trace))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert trace.exists()


def test_versions_and_machines_that_differ_are_told(
    home: Path, archive: Path, tmp_path: Path
) -> None:
    def older(text: str) -> str:
        manifest = json.loads(text)
        manifest["versions"]["torch"] = "2.0.1"
        manifest["packages"] |= {"rich": "1.2.3", "left-pad": "9.9"}
        manifest |= {"device_name": "Abacus\x1b[31m", "threads": torch.get_num_threads() + 1}
        return json.dumps(manifest)

    threads = torch.get_num_threads()
    old = forged(archive, tmp_path / "old.zip", "manifest.json", older)
    out = invoke("verify", old, "--trust-code", "--iterations", 2, cwd=home).stdout
    assert f"differs: torch 2.0.1 there, {torch.__version__.partition('+')[0]} here" in out
    assert "2 more packages: rich 1.2.3 there, " in out
    assert "left-pad 9.9 there, absent here" in out
    assert r"differs: device Abacus\x1b[31m there, " in out
    assert "CPU threads" not in out  # as many are used as the run had
    assert torch.get_num_threads() == threads


def test_a_changed_plugin_is_told_and_its_run_is_not_repeated(
    home: Path, archive: Path, tmp_path: Path
) -> None:
    other = forged(
        archive, tmp_path / "other.zip", "counter.py", lambda code: code.replace("0.9 *", "0.8 *")
    )
    out = invoke("verify", other, "--trust-code", cwd=home, code=1).stdout
    assert "differs: plugin counter: code " in out
    assert "not repeated: differences begin at iteration " in out


def with_last_loss(factor: float) -> Callable[[str], str]:
    """Multiplies the pixel loss of iteration 12."""

    def change(stats: str) -> str:
        lines = [json.loads(line) for line in stats.splitlines()]
        (line,) = [one for one in lines if one["iteration"] == 12 and "G/pixel_loss" in one]
        line["G/pixel_loss"] *= factor
        return "".join(json.dumps(one) + "\n" for one in lines)

    return change


def test_one_digit_of_a_log_that_was_changed_is_found(
    home: Path, archive: Path, tmp_path: Path
) -> None:
    better = forged(archive, tmp_path / "better.zip", "stats.jsonl", with_last_loss(1 - 1e-6))
    out = invoke("verify", better, "--trust-code", cwd=home, code=1).stdout
    (row,) = [line for line in out.splitlines() if line.startswith("G/pixel_loss")]
    _, begins_at, begins, largest, largest_at = row.split()
    assert (begins_at, largest_at) == ("12", "12")
    assert begins == largest
    assert float(largest) == pytest.approx(1e-6, rel=0.5)
    assert "not repeated" in out
    assert "versions, machine and code are the same, so all must be equal" in out


def test_a_small_difference_is_rounding_only_where_versions_differ(
    home: Path, archive: Path, tmp_path: Path
) -> None:
    near = forged(archive, tmp_path / "near.zip", "stats.jsonl", with_last_loss(1.0005))
    invoke("verify", near, "--trust-code", cwd=home, code=1)
    old = forged(near, tmp_path / "old.zip", "manifest.json", changed_json("platform", "Plan 9"))
    out = invoke("verify", old, "--trust-code", cwd=home).stdout
    assert out.splitlines()[-1].startswith("repeated within rounding")
    invoke("verify", old, "--trust-code", "--tolerance", 1e-6, cwd=home, code=1)


def test_other_data_are_named(home: Path, archive: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for file in (home / "photos").iterdir():
        (tmp_path / "photos" / file.name).write_bytes(file.read_bytes())
    write_png(torch.zeros(3, 40, 48, dtype=torch.uint8), tmp_path / "photos" / "c.png")
    held_out = f"image_folder.evaluation_path={home / 'held_out'}"
    out = invoke("verify", archive, "--trust-code", "--set", held_out, cwd=tmp_path, code=1).stdout
    assert "image_folder.path: photos in this folder" in out
    assert "differs: training data: 1 more: " in out
    assert "the data are not those of the run" in out


def test_a_run_that_went_on_with_other_data_says_so(home: Path) -> None:
    shutil.copytree(home / "photos", home / "growing")
    grows = ["--set", "image_folder.path=growing"]
    invoke("run", "game.toml", "--name", "grown", "--max-iterations", 4, *grows, cwd=home)
    shutil.copy(home / "photos" / "a.png", home / "growing" / "c.png")
    invoke("resume", "grown", "--accept-data", cwd=home)
    invoke("pack", "grown", cwd=home)
    out = invoke("verify", "grown.zip", "--trust-code", cwd=home, code=1).stdout
    assert "the run was resumed at iteration 4 with other data" in out


def test_data_without_a_place_are_asked_for(archive: Path, tmp_path: Path) -> None:
    result = invoke("verify", archive, "--trust-code", cwd=tmp_path, code=2)
    assert "image_folder.path, image_folder.evaluation_path has no place here" in result.stderr
    assert "--set image_folder.path=PATH" in result.stderr


def test_a_place_that_the_file_itself_names_is_not_read(
    home: Path, archive: Path, tmp_path: Path
) -> None:
    places = [str(home / "photos"), "../photos", "..", "photos/../photos"]
    for number, place in enumerate(places):
        nosy = forged(
            archive, tmp_path / f"{number}.zip", "recipe.toml",
            lambda text, place=place: text.replace('path = "photos"', f"path = {place!r}"),
        )  # fmt: skip
        result = invoke("verify", nosy, "--trust-code", cwd=home, code=2)
        assert "image_folder.path has no place here" in result.stderr


def test_a_setting_that_is_changed_is_told(home: Path, archive: Path) -> None:
    command = ["verify", archive, "--trust-code", "--iterations", 1]
    out = invoke(*command, "--set", "pixel_loss.weight=3", cwd=home, code=1).stdout
    assert "differs: pixel_loss.weight 1.0 there, 3.0 here" in out


@posix
def test_a_run_that_was_killed_and_resumed_is_repeated(home: Path, ganlab: Command) -> None:
    done = ganlab("run", "game.toml", "--name", "killed", cwd=home, PULL_THE_PLUG_AT="9")
    assert done.returncode == -9
    invoke("resume", "killed", cwd=home)
    invoke("pack", "killed", cwd=home)
    out = invoke("verify", "killed.zip", "--trust-code", cwd=home).stdout
    assert "equal in every digit" in out
    assert "generator.safetensors: equal to the last bit" in out


def test_a_run_that_was_stopped_and_one_that_diverged_are_repeated(home: Path) -> None:
    invoke("run", "game.toml", "--name", "stopped", "--max-iterations", 7, cwd=home)
    invoke("pack", "stopped", cwd=home)
    out = invoke("verify", "stopped.zip", "--trust-code", cwd=home).stdout
    assert "running iterations 1 to 7 again, of 7" in out
    bad = "adam={ learning_rate = 1e30 }"
    invoke("run", "game.toml", "--name", "bad", "--set", bad, cwd=home, code=3)
    invoke("pack", "bad", cwd=home)
    out = invoke("verify", "bad.zip", "--trust-code", cwd=home).stdout
    assert "diverged: " in out
    assert "equal in every digit" in out


def test_a_run_that_logged_nothing_is_not_packed(home: Path) -> None:
    (home / "runs" / "empty").mkdir()
    for name in ("recipe.toml", "manifest.json", "counter.py"):
        (home / "runs" / "empty" / name).write_bytes((home / "runs" / "whole" / name).read_bytes())
    result = invoke("pack", "empty", cwd=home, code=2)
    assert "has logged nothing yet" in result.stderr


def test_an_existing_file_is_not_overwritten(home: Path, archive: Path) -> None:
    before = archive.read_bytes()
    result = invoke("pack", "whole", cwd=home, code=2)
    assert "whole.zip exists" in result.stderr
    assert archive.read_bytes() == before
    result = invoke("pack", "whole", "-o", "nowhere/a.zip", cwd=home, code=2)
    assert "there is no folder nowhere" in result.stderr


def test_weights_of_another_run_in_the_file_are_found(home: Path, tmp_path: Path) -> None:
    invoke("pack", "whole", "--weights", "-o", tmp_path / "w.zip", cwd=home)
    name = "generator.safetensors"
    flipped = forged_bytes(tmp_path / "w.zip", tmp_path / "flipped.zip", name,
                           lambda weights: weights[:-1] + bytes([weights[-1] ^ 1]))  # fmt: skip
    result = invoke("verify", flipped, "--trust-code", cwd=home, code=2)
    assert "its sha256 differs" in result.stderr

    def another(weights: bytes) -> bytes:
        (tmp_path / name).write_bytes(weights)
        tensors, metadata = read_safetensors(tmp_path / name)
        about = json.loads(metadata["ganlab"])
        del about["sha256"]
        other = {key: value + 1 for key, value in tensors.items()}
        return save(other, seal(other, about))

    other = forged_bytes(tmp_path / "w.zip", tmp_path / "other.zip", name, another)
    out = invoke("verify", other, "--trust-code", cwd=home, code=1).stdout
    assert "generator.safetensors: not equal" in out


def test_differences_are_shares_of_the_largest_value_of_their_figure() -> None:
    logged = {"a": {(1, ""): 1.0, (2, ""): -4.0}, "b": {(1, ""): 0.0}, "c": {(3, ""): 2.0}}
    again = {"a": {(1, ""): 1.4, (2, ""): -3.0}, "b": {(1, ""): 0.0}, "d": {(1, ""): float("nan")}}
    a, b, c, d = compare_logs(logged, again)
    assert (a.figure, a.values, a.largest, a.at) == ("a", 2, 0.25, 2)
    assert (a.first, a.begins) == (1, pytest.approx(0.1))
    assert (b.largest, b.first, b.begins) == (0.0, 0, 0.0)
    assert (c.largest, c.first) == (float("inf"), 3)  # logged, but not seen again
    assert d.largest == float("inf")


@pytest.mark.parametrize(("begins", "repeated"), [(1e-6, True), (0.01, False)])
def test_rounding_begins_small_whatever_it_grows_to(begins: float, repeated: bool) -> None:
    figures = [
        Agreement("G/a", 9, largest=0.5, at=9, first=3, begins=begins / 10),
        Agreement("G/b", 9, largest=begins, at=3, first=3, begins=begins),
        Agreement("health/c", 1, largest=2.0, at=8, first=8, begins=2.0),
    ]
    assert Verification(9, figures=figures, exact=False).repeated == repeated
    assert not Verification(9, figures=figures, exact=True).repeated


def test_a_figure_that_was_not_finite_twice_agrees() -> None:
    nan = {"a": {(1, ""): float("nan")}}
    assert compare_logs(nan, nan)[0].largest == 0
    assert compare_logs(nan, {"a": {(1, ""): 1.0}})[0].largest == float("inf")


def test_how_close_captured_steps_were_is_no_figure_to_verify(tmp_path: Path) -> None:
    stats, scores = tmp_path / "stats.jsonl", tmp_path / "scores.jsonl"
    stats.write_text('{"iteration": 1, "G/adversarial": 0.5, "replay/G": 0.001}\n')
    scores.write_text("")
    assert read_figures(stats, scores, 1) == {"G/adversarial": {(1, ""): 0.5}}
    assert logged_iterations(stats) == {"G/adversarial": (1, 1)}
