"""The commands as a user types them."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from children import fresh
from click.testing import CliRunner, Result

from ganlab.cli import main
from ganlab.images.files import read_image, split_alpha, write_png
from ganlab.runs.reading import Log
from ganlab.runs.record import carry_out

Command = Callable[..., subprocess.CompletedProcess[str]]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny finished run, trained and evaluated on images of its own."""
    folder = tmp_path_factory.mktemp("cli")
    generator = torch.Generator().manual_seed(1)
    (folder / "photos").mkdir()
    for name, shape in (("a", (3, 64, 72)), ("b", (3, 61, 67)), ("grey", (1, 48, 48))):
        image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        write_png(image, folder / "photos" / f"{name}.png")
    recipe = folder / "tiny.toml"
    recipe.write_text(
        "iterations = 6\nbatch_size = 2\nd_steps = 0\nevaluate_every = 3\n[plugins]\n"
        "image_folder = { path = 'photos', evaluation_path = 'photos/../photos', crop = 16 }\n"
        "bicubic = {}\nencoder_decoder = { width = 4 }\npixel_loss = {}\n"
    )
    (folder / "held").mkdir()
    write_png(read_image(folder / "photos" / "a.png"), folder / "held" / "a.png")
    recipe.write_text(recipe.read_text().replace("photos/../photos", "held"))
    result = invoke("run", recipe, "--runs", folder / "runs", "--name", "done")
    assert result.exit_code == 0, result.output
    return folder / "runs" / "done"


def test_results_go_to_stdout_and_progress_to_stderr(tiny: Path) -> None:
    done = fresh("run", tiny.name, cwd=tiny.parent)  # a new Python, as a user starts it
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("done at iteration 4 of 4\n")
    assert "writing to runs/tiny-1" in done.stderr
    assert done.stderr.rstrip().endswith("next: ganlab upscale runs/tiny-1 IMAGE")


def test_a_run_leaves_its_folder(trained: Path) -> None:
    names = {path.name for path in trained.iterdir() if not path.name.startswith(".")}
    assert names == {
        "recipe.toml", "manifest.json", "data.json", "status.json", "stats.jsonl", "timing.jsonl",
        "samples", "checkpoints", "generator.safetensors", "best.safetensors",
        "pictures", "scores.jsonl", "verdicts.jsonl", "report.html", "log.txt",
    }  # fmt: skip
    assert {p.name for p in (trained / "samples").iterdir()} == {"0000003.png", "0000006.png"}
    lines = [*Log(trained / "stats.jsonl")]
    assert [line["iteration"] for line in lines] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert "evaluation/psnr_y" in lines[3]
    manifest = json.loads((trained / "manifest.json").read_text())
    assert (
        manifest["versions"]["torch"] == torch.__version__.partition("+")[0]
        or "+" in (manifest["versions"]["torch"])
    )
    assert manifest["seed"] == 0
    assert len(manifest["plugins"]["bicubic"]["sha256"]) == 64
    assert manifest["plugins"]["bicubic"]["distribution"] == "ganlab"


def test_a_second_run_gets_a_folder_of_its_own(tiny: Path) -> None:
    runs = tiny.parent / "runs"
    for _ in range(2):
        assert invoke("run", tiny, "--runs", runs, "--max-iterations", 1).exit_code == 0
    assert sorted(p.name for p in runs.iterdir()) == ["tiny-1", "tiny-2"]
    again = invoke("run", tiny, "--runs", runs, "--name", "tiny-2")
    assert again.exit_code == 2
    assert "never overwritten" in again.stderr


def test_max_iterations_stops_resumably(tiny: Path) -> None:
    runs = tiny.parent / "runs"
    stopped = invoke("run", tiny, "--runs", runs, "--max-iterations", 2)
    assert stopped.exit_code == 0
    assert stopped.stdout.startswith("stopped at iteration 2 of 4")
    assert f"next: ganlab resume {runs / 'tiny-1'}" in stopped.stderr
    # though 2 is a checkpoint and no evaluation: whoever stops a run wants to use it
    assert (runs / "tiny-1" / "generator.safetensors").is_file()
    resumed = invoke("run", tiny, "--resume", runs / "tiny-1")
    assert resumed.stdout.startswith("done at iteration 4 of 4")


def test_max_time_stops_resumably(tiny: Path) -> None:
    runs = tiny.parent / "runs"
    result = invoke("run", tiny, "--runs", runs, "--set", "iterations=1000000", "--max-time", "1s")
    assert result.exit_code == 0
    assert result.stdout.startswith("stopped at iteration")
    again = invoke("resume", runs / "tiny-1", "--max-time", "0.1s")
    assert again.exit_code == 0
    assert "resuming at iteration" in again.stderr
    assert [*Log(runs / "tiny-1" / "stats.jsonl")]


def test_a_run_stopped_before_its_first_checkpoint_begins_anew(tiny: Path) -> None:
    runs = tiny.parent / "runs"
    assert invoke("run", tiny, "--runs", runs, "--max-time", "0.000001s").exit_code == 0
    again = invoke("resume", runs / "tiny-1")
    assert again.stdout.startswith("done at iteration 4 of 4"), again.output


@pytest.mark.parametrize("part", ["generator.safetensors", "stats.jsonl"])
def test_a_truncated_file_of_a_run_is_named_not_dumped(
    trained: Path, tmp_path: Path, part: str
) -> None:
    import shutil

    hurt = shutil.copytree(trained, tmp_path / "hurt") / part
    hurt.write_bytes(hurt.read_bytes()[:40])
    result = invoke("eval", hurt.parent, "--data", trained.parents[1] / "photos")
    assert result.exit_code == (1 if part.startswith("generator") else 0)
    assert "Traceback" not in result.output


def test_resuming_under_another_recipe_is_refused(tiny: Path) -> None:
    runs = tiny.parent / "runs"
    invoke("run", tiny, "--runs", runs, "--max-iterations", 2)
    other = invoke("run", tiny, "--set", "seed=3", "--resume", runs / "tiny-1")
    assert other.exit_code == 2
    assert "another recipe" in other.stderr


def test_a_dry_run_prints_the_resolved_recipe_and_writes_nothing(tiny: Path) -> None:
    result = invoke("run", tiny, "--dry-run", "--seed", 5, "--runs", tiny.parent / "runs")
    assert result.exit_code == 0
    assert "seed = 5" in result.stdout
    assert not (tiny.parent / "runs").exists()
    copy = tiny.with_name("copy.toml")
    copy.write_text(result.stdout)
    assert invoke("check", copy).exit_code == 0


def test_eval_scores_every_image_beside_bicubic(trained: Path) -> None:
    found = json.loads(
        invoke("eval", trained, "--data", trained.parents[1] / "photos", "--json").stdout
    )
    assert set(found["images"]) == {"a.png", "b.png", "grey.png"}
    for row in (*found["images"].values(), found["mean"]):
        assert row["generator"].keys() == row["bicubic"].keys()
        assert {"psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb", "lr_psnr", "hf_ratio"} == set(
            row["generator"]
        )
    mean = sum(r["generator"]["psnr_y"] for r in found["images"].values()) / 3
    assert found["mean"]["generator"]["psnr_y"] == pytest.approx(mean)
    shown = invoke("eval", trained, "--data", trained.parents[1] / "photos")
    assert "mean of 3" in shown.stdout
    assert "BT.601" in shown.stdout


@pytest.fixture(scope="module")
def judged_by_plugins(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with plugins that score an image, that judge a set, and that need a run."""
    import shutil

    copy = shutil.copytree(trained, tmp_path_factory.mktemp("evaluated") / "done")
    recipe = (copy / "recipe.toml").read_text()
    recipe += (
        "radial_spectrum = {}\nother = { use = 'radial_spectrum', middle_from = 0.1 }\n"
        "mmd = { patch = 8, num_patches = 20, num_permutations = 19 }\n"
        "spy = { use = './spy.py' }\ndraw = { use = './draw.py' }\n"
    )
    carry_out(copy, recipe, [])
    (copy / "spy.py").write_text(
        "from ganlab import Plugin, hookimpl\n"
        "class Spy(Plugin):\n"
        "    'Asks for the networks of a run in training.'\n"
        "    @hookimpl\n"
        "    def evaluate(self, run):\n"
        "        return {'spy': run.D_optimizer.no_such_thing}\n"
    )
    (copy / "draw.py").write_text(
        "import torch\n"
        "from ganlab import Plugin, hookimpl\n"
        "class Draw(Plugin):\n"
        "    'A random number for each set of images.'\n"
        "    @hookimpl\n"
        "    def evaluate(self, images):\n"
        "        return {'draw': len(images) + torch.rand((), generator=self.host_rng).item()}\n"
    )
    (copy.parent / "data").mkdir()
    for name, image in zip("ab", torch.rand(2, 3, 64, 64), strict=True):
        write_png((image * 255).to(torch.uint8), copy.parent / "data" / f"{name}.png")
    return copy


def test_eval_asks_the_plugins_that_judge_a_set_of_images(judged_by_plugins: Path) -> None:
    data = judged_by_plugins.parent / "data"
    first, again = (
        json.loads(
            invoke("eval", judged_by_plugins, "--data", data, "--json", "--trust-code").stdout
        )
        for _ in range(2)
    )
    assert first == again
    assert first["set"].keys() == {"generator", "bicubic"}
    for figures in first["set"].values():
        assert figures.keys() == {"mmd", "mmd_p", "draw"}
    draws = [figures["draw"] for figures in first["set"].values()]
    assert draws[0] == draws[1] > 2  # the same places of SR and of bicubic
    assert first["set"]["generator"] != first["set"]["bicubic"]
    assert {"other_middle", "radial_spectrum"} <= first["mean"]["bicubic"].keys()


def test_columns_that_do_not_fit_go_to_another_table(judged_by_plugins: Path) -> None:
    data = judged_by_plugins.parent / "data"
    shown = invoke("eval", judged_by_plugins, "--data", data, "--trust-code").stdout
    assert "…" not in shown
    for title in ("psnr_y", "hf_ratio", "radial_spectrum_middle", "other_high", "mmd_p"):
        assert shown.count(title) >= 1
    assert shown.count("mean of 2") == 2
    assert shown.count("set of 2") == 1


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("lr_psnr", 31.237, "31.24"),
        ("ms_ssim", 0.96712, "0.9671"),
        ("lpips", 0.00012345, "0.0001234"),
        ("c2st_p", 6.2e-33, "6.2e-33"),
        ("fid", 123.456, "123.5"),
        ("niqe", float("nan"), "-"),
    ],
)
def test_figures_are_shown_with_the_digits_that_matter(name: str, value: float, text: str) -> None:
    from ganlab.commands.apply import _shown

    assert _shown(name, value) == text


def test_eval_needs_no_training_data(trained: Path, tmp_path: Path) -> None:
    import shutil

    moved = shutil.copytree(trained, tmp_path / "moved")
    text = (moved / "recipe.toml").read_text()
    carry_out(moved, text.replace(str(trained.parents[1]), "/nowhere"), [])
    assert invoke("eval", moved, "--data", trained.parents[1] / "photos").exit_code == 0


@pytest.mark.parametrize("side", [(1, 1), (7, 13), (90, 31)])
def test_upscale_takes_any_size(trained: Path, tmp_path: Path, side: tuple[int, int]) -> None:
    write_png(torch.randint(0, 256, (3, *side), dtype=torch.uint8), tmp_path / "x.png")
    result = invoke("upscale", trained, tmp_path / "x.png", "-o", tmp_path / "out", "--tile", 64)
    assert result.exit_code == 0, result.output
    assert read_image(tmp_path / "out" / "x.png").shape == (3, 4 * side[0], 4 * side[1])


def test_upscale_keeps_alpha_and_overwrites_nothing(trained: Path, tmp_path: Path) -> None:
    image = torch.randint(0, 256, (4, 20, 24), dtype=torch.uint8)
    image[3] = 128
    write_png(image, tmp_path / "x.png")
    assert invoke("upscale", trained, tmp_path / "x.png", "-o", tmp_path).exit_code == 2
    assert invoke("upscale", trained, tmp_path / "x.png", "-o", tmp_path / "o").exit_code == 0
    colour, alpha = split_alpha(tmp_path / "o" / "x.png")
    assert colour.shape == (3, 80, 96)
    assert alpha is not None
    assert alpha.unique().tolist() == [128]


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ([], None),
        (["gradient_penalty=false"], "wasserstein needs a critic of bounded slope"),
        (["gradient_penalty=false", "weight_clipping={}"], None),
        (["wasserstein=false", "bce={}"], "gradient_penalty holds slopes at 1"),
        (["wasserstein=false", "bce={}", "gradient_penalty.target=0"], None),
        (["wasserstein=false", "bce={}", "gradient_penalty=false", "r1={}"], None),
    ],
)
def test_check_warns_of_an_objective_and_a_penalty_at_odds(
    tiny: Path, changes: list[str], warning: str | None
) -> None:
    done = invoke("check", tiny, *(part for change in changes for part in ("--set", change)))
    assert done.exit_code == 0
    warnings = [line for line in done.stdout.splitlines() if line.startswith("warning:")]
    assert bool(warnings) == bool(warning)
    assert not warning or warning in warnings[0]


def test_plugins_lists_all_and_shows_one_with_its_paper() -> None:
    listed = json.loads(invoke("plugins", "--json").stdout)
    assert {"builtin", "bicubic", "wasserstein"} <= {plugin["name"] for plugin in listed}
    shown = invoke("plugins", "gradient_penalty").stdout
    assert "arXiv:1704.00028" in shown
    assert "weight = 10.0" in shown
    assert "schedule" in shown
    penalties = json.loads(invoke("plugins", "--hook", "penalty", "--json").stdout)
    assert {"gradient_penalty", "r1"} <= {plugin["name"] for plugin in penalties}
    kinds = {plugin["name"]: plugin["kind"] for plugin in listed}
    assert kinds["r1"] == "penalties" and kinds["spectral_norm"] == "discriminators"
    assert kinds["bicubic"] == "degradations" and kinds["ema"] == "training"
    assert {"penalties", "degradations"} <= set(invoke("plugins").stdout.splitlines())


def test_runs_lists_what_was_run(trained: Path) -> None:
    shown = invoke("runs", "--runs", trained.parent)
    assert "done" in shown.stdout
    found = json.loads(invoke("runs", "--runs", trained.parent, "--json").stdout)
    assert (found[0]["state"], found[0]["iteration"]) == ("done", 6)
    assert invoke("runs", "--runs", trained / "none").exit_code == 0


def test_the_module_runs_too(tmp_path: Path) -> None:
    done = fresh("--version", cwd=tmp_path)
    assert done.stdout.startswith("ganlab, version ")


def test_the_generator_of_a_toy_is_not_asked_to_enlarge_photographs(tmp_path: Path) -> None:
    recipe = Path(__file__).parents[1] / "recipes" / "toy" / "ring_r1.toml"
    small = ("--set", "iterations=2", "--set", "mlp.width=4", "--set", "batch_size=4")
    done = invoke("run", recipe, *small, "--runs", tmp_path, "--name", "toy", "--device", "cpu")
    assert done.exit_code == 0
    assert "held-out" not in done.stdout and "upscale" not in done.stderr
    refused = invoke("eval", tmp_path / "toy", "--data", tmp_path)
    assert refused.exit_code == 2
    assert "enlarges no images" in refused.stderr
