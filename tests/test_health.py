"""What an evaluation tells of the game, and what a verdict makes of the run."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from ganlab.assembly import assemble
from ganlab.cli import main
from ganlab.evaluation.health import SAMPLES, game_health
from ganlab.evaluation.scores import eval_mode
from ganlab.images.files import write_png
from ganlab.monitoring.attribution import of_logits
from ganlab.recipe.model import load_recipe
from ganlab.run import Run

CPU = torch.device("cpu")


@pytest.fixture
def run(tiny: Path) -> Run:
    """A tiny game with held-out images."""
    generator = torch.Generator().manual_seed(0)
    for part in ("photos", "held_out"):
        (tiny.parent / part).mkdir()
        for name in ("a", "b"):
            image = torch.randint(0, 256, (3, 40, 48), dtype=torch.uint8, generator=generator)
            write_png(image, tiny.parent / part / f"{name}.png")
    data = 'image_folder={ path = "photos", evaluation_path = "held_out", crop = 16 }'
    with contextlib.chdir(tiny.parent):
        return assemble(load_recipe(tiny, ["dead_leaves=false", data]), CPU)


class Judge(nn.Module):
    """D that gives an image the mean of what it is told of it."""

    def __init__(self, of: object) -> None:
        super().__init__()
        self.of = of

    def forward(self, images: Tensor) -> Tensor:
        return self.of(images)  # type: ignore[operator, no-any-return]


def figures(run: Run, generator: nn.Module | None = None) -> dict[str, float]:
    generator = generator or run.G
    with eval_mode(generator):
        return game_health(run, generator)


def test_a_generator_that_answers_alike_to_all_has_spread_0(run: Run) -> None:
    constant = Judge(lambda lr: torch.full((len(lr), 3, 16, 16), 0.5))
    assert figures(run, constant)["health/spread"] == 0
    # noise enlarged by bicubic is smoother than noise
    assert 0.1 < figures(run)["health/spread"] < 0.5


def test_a_discriminator_that_judges_all_images_alike_has_no_held_out_gap(run: Run) -> None:
    contrast = Judge(lambda images: images.flatten(1).std(dim=1, keepdim=True))
    run.D = contrast
    found = figures(run)
    assert abs(found["health/held_out_gap"]) < 0.1
    assert found["health/trained_accuracy"] == found["health/held_out_accuracy"] == 1


def test_a_discriminator_that_knows_only_its_training_images_has_gap_1(run: Run) -> None:
    seen: list[Tensor] = []

    def by_heart(images: Tensor) -> Tensor:
        # asked in turn: training reals, their fakes, held-out reals, their fakes
        known = (1.0, 0.0, 0.5, 0.5)[sum(map(len, seen)) // SAMPLES]
        seen.append(images)
        return known + 1e-3 * images.flatten(1).mean(1, keepdim=True)

    run.D = Judge(by_heart)
    found = figures(run)
    assert found["health/held_out_gap"] == pytest.approx(1, abs=0.01)
    assert found["health/trained_accuracy"] == 1


@pytest.mark.parametrize(("batch", "accumulate"), [(4, 1), (12, 2), (6, 1), (256, 1)])
def test_health_is_judged_in_full_batches_and_is_the_same(
    run: Run, batch: int, accumulate: int
) -> None:
    """6 does not divide the number of samples, and 256 is more than that."""
    contrast = Judge(lambda images: images.flatten(1).std(dim=1, keepdim=True))
    run.D, sizes = contrast, set()
    run.recipe = run.recipe.model_copy(update={"batch_size": SAMPLES})
    at_once = figures(run)
    run.G.register_forward_pre_hook(lambda module, args: sizes.add(len(args[0])))
    run.D.register_forward_pre_hook(lambda module, args: sizes.add(len(args[0])))
    run.recipe = run.recipe.model_copy(update={"batch_size": batch, "accumulate": accumulate})
    assert figures(run) == pytest.approx(at_once, rel=1e-5)
    assert sizes == {min(batch // accumulate, SAMPLES)}


def test_a_discriminator_that_tells_nothing_has_no_gap(run: Run) -> None:
    run.D = Judge(lambda images: torch.zeros(len(images), 1))
    assert figures(run).keys() == {"health/spread"}
    run.D = None
    assert figures(run) == {}


def test_looking_changes_no_weight_no_buffer_and_no_mode(tiny: Path) -> None:
    batch_norm = ["gradient_penalty=false", "patch_discriminator.norm='batch'"]
    run = assemble(load_recipe(tiny, batch_norm), CPU)
    assert run.D is not None
    before = {k: v.clone() for k, v in run.D.state_dict().items()}
    figures(run)
    assert run.D.training
    assert all(torch.equal(v, before[k]) for k, v in run.D.state_dict().items())


def test_the_figures_of_logits_are_known() -> None:
    real, fake = (
        torch.tensor([[5.0], [1.0], [-1.0], [6.0]]),
        torch.tensor([[-5.0], [2.0], [-2.0], [0.0]]),
    )
    found = {name: value.item() for name, value in of_logits(real, fake, by_sign=True).items()}
    assert found == {
        "health/paired_accuracy": 0.75,
        "health/real_accuracy": 0.75,
        "health/fake_accuracy": 0.5,
        "health/saturation": 0.375,
    }
    assert of_logits(real, fake, by_sign=False).keys() == {"health/paired_accuracy"}


# --- what the recipe does then -------------------------------------------------------------------

SICK = """\
from ganlab import Plugin, Verdict, hookimpl


class Doctor(Plugin):
    \"\"\"Finds the run ill at iteration 6, since iteration 5.\"\"\"

    @hookimpl
    def verdicts(self, history):
        last = history.lines[-1][0] if history.lines else 0
        return [Verdict("ill", 5, "G is <b>ill</b> from iteration 5")] if last >= 6 else []
"""


@pytest.fixture
def ward(tiny: Path) -> Iterator[Path]:
    """The current folder, with a recipe that falls ill."""
    (tiny.parent / "doctor.py").write_text(SICK)
    game = tiny.read_text().replace("iterations = 4", "iterations = 12\nwatch_every = 1")
    (tiny.parent / "game.toml").write_text(game + 'doctor = { use = "./doctor.py" }\n')
    with contextlib.chdir(tiny.parent):
        yield tiny.parent


def play(*arguments: str) -> tuple[int, str, Path]:
    result = CliRunner().invoke(main, list(arguments), catch_exceptions=False)
    name = arguments[arguments.index("--name") + 1] if "--name" in arguments else ""
    return result.exit_code, result.stdout + result.stderr, Path("runs") / name


@pytest.mark.usefixtures("ward")
@pytest.mark.parametrize(
    ("action", "exit_code", "iteration", "state"),
    [("carry on", 0, 12, "done"), ("stop", 4, 6, "stopped"), ("roll back", 4, 4, "stopped")],
)
def test_a_verdict_is_told_and_the_recipe_says_what_then(
    action: str, exit_code: int, iteration: int, state: str
) -> None:
    name = action.replace(" ", "-")
    code, output, folder = play("run", "game.toml", "--set", f'on_verdict="{action}"',
                                "--name", name)  # fmt: skip
    assert code == exit_code
    status = json.loads((folder / "status.json").read_text())
    assert (status["iteration"], status["state"]) == (iteration, state)
    assert status["verdicts"] == ["G is <b>ill</b> from iteration 5"]
    (line,) = (folder / "verdicts.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "iteration": 6, "name": "ill", "since": 5, "action": action,
        "sentence": "G is <b>ill</b> from iteration 5",
    }  # fmt: skip
    assert output.count(f"verdict: G is <b>ill</b> from iteration 5 ({action})") == 1
    newest = max(int(file.stem) for file in (folder / "checkpoints").glob("*.pt"))
    assert newest == iteration


@pytest.mark.usefixtures("ward")
def test_a_run_that_a_verdict_stopped_goes_on_when_told_to_and_is_the_run_that_carried_on() -> None:
    for name, action in (("whole", "carry on"), ("cut", "stop")):
        play("run", "game.toml", "--set", f'on_verdict="{action}"', "--name", name)
    assert play("resume", "runs/cut")[0] == 0
    one, other = (Path("runs", name, "stats.jsonl").read_bytes() for name in ("whole", "cut"))
    assert one == other
    verdicts = Path("runs/cut/verdicts.jsonl").read_text().splitlines()
    assert len(verdicts) == 1


@pytest.mark.usefixtures("ward")
def test_rolling_back_puts_the_weights_of_before_back() -> None:
    play("run", "game.toml", "--set", 'on_verdict="roll back"', "--name", "back")
    play("run", "game.toml", "--max-iterations", "4", "--name", "four")
    one, other = (
        torch.load(f"runs/{name}/checkpoints/0000004.pt", weights_only=True)["networks"]["G"]
        for name in ("back", "four")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)
