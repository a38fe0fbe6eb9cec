"""No number that is not finite reaches weights, optimizers or files, wherever it arises."""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from training import build

from ganlab import assembly, ending, session
from ganlab.checkpoint import checkpoints_of, read_checkpoint
from ganlab.errors import Diverged, RecipeError
from ganlab.failures import replay
from ganlab.generator_weights import weights_of, write_weights
from ganlab.guard import flag_of, is_sound, left_out_where
from ganlab.iteration import iterate
from ganlab.limits import Limits
from ganlab.recipe.model import load_recipe
from ganlab.run import Run
from ganlab.runs.folder import RunFolder
from ganlab.runs.journal import Journal
from ganlab.runs.reading import Log
from ganlab.speed.graphs import Graphs
from ganlab.state import state_of
from ganlab.testing.recorder import CpuRecorder
from ganlab.words import summary

pytestmark = pytest.mark.usefixtures("few_samples")

POISON = '''\
import torch
from pydantic import PrivateAttr

from ganlab import Plugin, hookimpl


class Poison(Plugin):
    """Puts a number into one place, at one iteration or from it on, counted from 1."""

    where: str
    value: str = "nan"
    at: int = 2
    until: int = 2
    lives: int = 1

    _run: object = PrivateAttr(None)
    _seen: list = PrivateAttr(default_factory=list)

    def here(self, where):
        run = self._run
        return (
            run is not None
            and where == self.where
            and self.at <= run.iteration + 1 <= self.until
            and run.progress.rolled_back < self.lives
        )

    def on(self, where, tensor):
        return tensor + float(self.value) if self.here(where) else tensor

    @hookimpl
    def evaluation_images(self):
        return {n: torch.randint(256, (3, 32, 32), dtype=torch.uint8,
                generator=torch.Generator().manual_seed(len(n))) for n in ("one", "three")}

    @hookimpl
    def run_start(self, run):
        run.D.register_forward_hook(lambda _, given, made: self.on("logits", made))

    @hookimpl
    def iteration_start(self, run):
        self._run = run
        if self.here("weights"):
            next(run.G.parameters()).data.add_(float(self.value))
        if self.here("buffers"):
            next(b for b in run.D.buffers() if b.is_floating_point()).fill_(float(self.value))
        if self.here("optimizer"):
            for state in run.G_optimizer.state.values():
                state["exp_avg_sq"].fill_(float("inf"))
        rate = float(self.value) if self.here("rate") else 1e-4
        run.D_optimizer.param_groups[0]["lr"] = rate

    @hookimpl
    def iteration_end(self, run):
        self._seen = []
        if self.here("ema"):
            average = run.hook.evaluation_generator(generator=run.G)
            next(average.parameters()).data.add_(float(self.value))

    @hookimpl(wrapper=True)
    def sample_real(self):
        return self.on("real", (yield))

    @hookimpl(wrapper=True)
    def degrade(self):
        return self.on("condition", (yield))

    @hookimpl(wrapper=True)
    def labels(self):
        real, fake = yield
        return self.on("labels", real), fake

    @hookimpl
    def penalty(self, real_logits):
        return {"D/poison": self.on("penalty", 0 * real_logits.mean())}

    @hookimpl
    def generator_loss(self, fake):
        return {"G/poison": self.on("loss", 0 * fake.mean())}

    @hookimpl(wrapper=True)
    def gradients(self, module, role):
        told = yield
        if role == "generator" and self.here("gradient"):
            next(module.parameters()).grad.view(-1)[0] = float(self.value)
        return told

    @hookimpl
    def score_images(self):
        return {"mine": self.on("score", torch.zeros(()))}
'''
RECIPE = """\
iterations = 3
batch_size = 2
evaluate_every = 1
checkpoint_every = 1
report_every = 50
watch_every = 0
keep = 9

[plugins]
dead_leaves = { crop = 16, num_images = 2, size = 32 }
bicubic = { scale = 4 }
encoder_decoder = { width = 4 }
patch_discriminator = { width = 4, num_layers = 1, norm = "batch" }
bce = {}
pixel_loss = { weight = 1.0 }
ema = {}
"""
IN_A_STEP = [
    ("real", "nan"),
    ("real", "inf"),
    ("condition", "nan"),
    ("logits", "nan"),
    ("labels", "-inf"),
    ("penalty", "nan"),
    ("loss", "inf"),
    ("gradient", "nan"),
    ("gradient", "inf"),
    ("gradient", "1e30"),  # its square is not finite, and Adam keeps that
    ("rate", "nan"),
    ("rate", "inf"),
    ("rate", "3e38"),  # the weights would be infinite after the step
]
BESIDE_STEPS = [("weights", "nan"), ("buffers", "inf"), ("optimizer", "inf"), ("ema", "nan")]


@pytest.fixture
def poisoned(tmp_path: Path) -> Path:
    (tmp_path / "poison.py").write_text(POISON)
    file = tmp_path / "poisoned.toml"
    file.write_text(RECIPE)
    return file


def at(where: str, value: str, **options: Any) -> str:
    named = "".join(f", {name} = {number}" for name, number in options.items())
    return f"poison={{ use = './poison.py', where = '{where}', value = '{value}'{named} }}"


def run(recipe: Path, *overrides: str, limits: Limits | None = None) -> tuple[RunFolder, int]:
    loaded = load_recipe(recipe, overrides)
    return session.start(loaded, "cpu", limits or Limits(), recipe.parent / "runs")


def refused(word: str) -> float:
    raise AssertionError(f"{word} is not JSON")


def numbers_on_the_disk(folder: RunFolder) -> Iterator[float]:
    """Each number in the checkpoints, the weights and the records of a run."""
    for number in checkpoints_of(folder.checkpoints):
        for leaf in tree_leaves(read_checkpoint(folder.checkpoints / f"{number:07d}.pt")):
            yield from leaf.flatten().tolist() if isinstance(leaf, Tensor) else [leaf]
    for file in folder.path.glob("*.safetensors"):
        yield from (n for tensor in load_file(file).values() for n in tensor.flatten().tolist())
    for file in folder.path.glob("*.json*"):
        text = file.read_text()
        for line in [text] if file.suffix == ".json" else text.splitlines():
            yield from tree_leaves(json.loads(line, parse_constant=refused))


def all_finite(folder: RunFolder) -> bool:
    numbers = [n for n in numbers_on_the_disk(folder) if isinstance(n, int | float)]
    return len(numbers) > 1000 and all(map(math.isfinite, numbers))


def digest(run: Run) -> str:
    """Of networks with their buffers, and of optimizers."""
    found = hashlib.sha256()
    for part in (run.G, run.D, run.G_optimizer, run.D_optimizer):
        for leaf in tree_leaves(part.state_dict()):
            found.update(leaf.numpy().tobytes() if isinstance(leaf, Tensor) else b"")
    return found.hexdigest()


# each is of a kind with another one; the next test has all of them
AGAIN = [("real", "inf"), ("condition", "nan"), ("gradient", "nan"), ("rate", "inf")]


@pytest.mark.parametrize(
    ("where", "value"),
    [
        pytest.param(*each, marks=[pytest.mark.long] if each in AGAIN else [])
        for each in IN_A_STEP + BESIDE_STEPS
    ],
)
def test_a_run_that_stops_leaves_nothing_on_the_disk_that_is_not_finite(
    where: str, value: str, poisoned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = replay.Cause(2, "not looked for")
    monkeypatch.setattr(ending, "find_cause", lambda *_: found)
    folder, code = run(poisoned, at(where, value))
    assert code == 3
    assert checkpoints_of(folder.checkpoints) == [1]
    assert all_finite(folder)


@pytest.mark.parametrize(("where", "value"), IN_A_STEP)
def test_a_skipped_step_changes_no_weight_no_buffer_and_no_optimizer(
    where: str, value: str, poisoned: Path
) -> None:
    made = build(poisoned, [at(where, value), "on_nonfinite=skip"])
    iterate(made)
    made.iteration = 1
    before = digest(made)
    kept = made.D.state_dict() | made.G.state_dict()
    copies = {name: tensor.clone() for name, tensor in kept.items()}
    found = iterate(made)
    skipped = {name: value.item() for name, value in found.items() if "nonfinite" in name}
    (role, *others) = made.progress.skipped
    assert skipped == {f"nonfinite/{name}": 1.0 for name in (role, *others)}
    assert made.skips[0].step == f"step 1 of {role}"
    if len(skipped) == 2:  # both steps: nothing at all has changed
        assert digest(made) == before
    network = made.networks[role]
    for name, tensor in network.state_dict().items():
        if name in network.state_dict() and "num_batches" not in name and "running" not in name:
            assert torch.equal(tensor, copies[name])
    made.iteration = 2
    assert not any("nonfinite" in name for name in iterate(made))
    assert digest(made) != before


@pytest.mark.parametrize(("where", "value"), BESIDE_STEPS)
def test_a_number_that_no_step_made_is_not_skipped(
    where: str, value: str, poisoned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "find_cause", lambda *args: replay.Cause(2, args[3].what))
    folder, code = run(poisoned, at(where, value), "on_nonfinite=skip")
    assert code == 3
    assert "not finite" in folder.read_status()["message"]
    assert all_finite(folder)


def test_skipped_steps_are_counted_and_told_and_more_than_the_limit_in_a_row_stop_the_run(
    poisoned: Path,
) -> None:
    skip = ["on_nonfinite=skip", "most_nonfinite=2", "iterations=5"]
    folder, code = run(poisoned, at("penalty", "nan", until=3), *skip)
    status = folder.read_status()
    assert (code, status["skipped"]) == (0, {"D": 2})
    told = list(Log(folder.verdicts))
    assert [(line["iteration"], line["name"], line["action"]) for line in told] == [
        (2, "nonfinite", "skip"),
        (3, "nonfinite", "skip"),
    ]
    assert "iteration 2, step 1 of D: D/poison is not finite" in told[0]["sentence"]
    lines = list(Log(folder.stats))
    assert [line["iteration"] for line in lines if "nonfinite/D" in line] == [2, 3]
    assert "skipped: 2 steps of D" in summary(folder)
    assert all_finite(folder)

    folder, code = run(poisoned, at("penalty", "nan", until=4), *skip)
    assert code == 3
    assert "D/poison is not finite" in folder.read_status()["message"]
    assert checkpoints_of(folder.checkpoints) == [1, 2, 3]


POLICIES = {
    "skip": (at("gradient", "inf", at=2, until=5), "on_nonfinite=skip"),
    "roll back": (at("logits", "nan", at=5, until=5, lives=2), "on_nonfinite=roll back"),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_stopped_run_goes_on_to_the_byte_under_each_policy(policy: str, poisoned: Path) -> None:
    usual = [*POLICIES[policy], "iterations=7", "checkpoint_every=3", "evaluate_every=7"]
    whole, code = run(poisoned, *usual)
    assert code == 0
    for stop in (3, 4):
        folder, _ = run(poisoned, *usual, limits=Limits(max_iterations=stop))
        folder, code = session.resume(folder.path, "cpu", Limits())
        assert code == 0
        for name in ("stats.jsonl", "scores.jsonl", "verdicts.jsonl", "generator.safetensors"):
            assert (folder.path / name).read_bytes() == (whole.path / name).read_bytes(), name


def test_a_run_goes_back_and_on_with_other_random_numbers_and_tells_it(
    poisoned: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    back = ["on_nonfinite=roll back", "iterations=5", "checkpoint_every=2", "evaluate_every=5"]
    twice = at("loss", "nan", at=4, until=4, lives=2)
    folder, code = run(poisoned, twice, *back, "most_nonfinite=2")
    assert "damaged" not in capfd.readouterr().err
    status = folder.read_status()
    assert (code, status["state"], status["rolled_back"]) == (0, "done", 2)
    told = list(Log(folder.verdicts))
    assert [(line["iteration"], line["times"]) for line in told] == [(4, 1), (4, 2)]
    assert "step 1 of G: G/poison is not finite; it comes from poison" in told[0]["sentence"]
    assert "rolled back: 2 times" in summary(folder)
    assert list(Log(folder.timing))[-1]["iteration"] == 5
    assert all_finite(folder)
    plain, _ = run(poisoned, at("loss", "nan", lives=0), *back)
    assert folder.weights().read_bytes() != plain.weights().read_bytes()

    folder, code = run(poisoned, twice, *back, "most_nonfinite=1")
    assert code == 3
    assert folder.read_status()["rolled_back"] == 1
    assert checkpoints_of(folder.checkpoints) == [2]


def test_a_run_without_a_checkpoint_goes_back_to_its_start(poisoned: Path) -> None:
    back = ["on_nonfinite=roll back", "checkpoint_every=9", "evaluate_every=9"]
    folder, code = run(poisoned, at("real", "inf"), *back)
    assert code == 0
    (told,) = list(Log(folder.verdicts))
    assert (told["iteration"], told["action"]) == (2, "roll back")


def test_weights_of_an_iteration_that_a_run_went_back_from_are_not_kept(poisoned: Path) -> None:
    folder, _ = run(poisoned, "iterations=4", "checkpoint_every=2", "evaluate_every=9")
    made = assembly.assemble(load_recipe(folder.recipe), torch.device("cpu"))
    for made.iteration in (2, 3):
        write_weights(weights_of(made, made.G), folder.weights("best"))
        earlier = replay.gone_back(folder, made.device, 1, 3)
        assert (earlier.iteration, folder.weights("best").exists()) == (2, made.iteration == 2)


def test_an_error_while_a_run_goes_back_is_how_it_ended(
    poisoned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(*_: object) -> Run:
        raise RecipeError("0000002.pt: cannot be read")

    monkeypatch.setattr(ending, "gone_back", unread)
    with pytest.raises(RecipeError, match="cannot be read"):
        run(poisoned, at("real", "inf"), "on_nonfinite=roll back")
    (path,) = (poisoned.parent / "runs").iterdir()
    status = RunFolder(path).read_status()
    assert (status["state"], status["exit_code"]) == ("failed", 1)
    assert "cannot be read" in status["message"]


@pytest.mark.parametrize(
    "settings",
    [
        ["d_steps=2", "accumulate=2", "batch_size=4"],
        ["first=generator"],
        ["first=generator", "share_forward=false"],
        ["r1={ weight = 1.0, every = 2 }", "patch_discriminator.norm=none"],
    ],
    ids=lambda settings: settings[0],
)
def test_a_step_is_skipped_however_steps_are_taken(settings: list[str], poisoned: Path) -> None:
    if settings[0].startswith("r1"):
        settings = ["plugins." + one for one in settings]
    made = build(poisoned, [at("penalty", "nan", at=1, until=1), "on_nonfinite=skip", *settings])
    before = {name: tensor.clone() for name, tensor in made.D.state_dict().items()}
    moved = {name: tensor.clone() for name, tensor in made.G.state_dict().items()}
    found = iterate(made)
    assert found["nonfinite/D"] == made.recipe.d_steps == made.progress.skipped["D"]
    parameters = dict(made.D.named_parameters())
    assert all(torch.equal(parameters[name], before[name]) for name in parameters)
    assert not all(torch.equal(t, moved[name]) for name, t in made.G.state_dict().items())
    made.iteration += 1
    assert "nonfinite/D" not in iterate(made)


def test_a_limit_without_a_policy_is_refused(poisoned: Path) -> None:
    with pytest.raises(RecipeError, match="most_nonfinite = 3 is not allowed; it has no effect"):
        load_recipe(poisoned, ["most_nonfinite=3"])


# --- the guard, and devices that are not waited for ----------------------------------------------


def optimizer_of(kind: str, gradient: list[float]) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    weight = nn.Parameter(torch.ones(len(gradient)))
    made = {
        "adam": lambda: torch.optim.Adam([weight], lr=0.1, fused=True),
        "adamw": lambda: torch.optim.AdamW([weight], lr=0.1, fused=True),
        "sgd": lambda: torch.optim.SGD([weight], lr=0.1, fused=True),
    }[kind]()
    weight.grad = torch.tensor(gradient)
    return weight, made


@pytest.mark.parametrize(
    ("gradient", "total", "rate", "sound"),
    [
        ([1.0, -2.0], 1.0, 0.1, True),
        ([1e18, 0.0], -1e30, 0.1, True),
        ([1e30, 0.0], 1.0, 0.1, False),
        ([0.0, math.nan], 1.0, 0.1, False),
        ([0.0, -math.inf], 1.0, 0.1, False),
        ([1.0, 1.0], math.inf, 0.1, False),
        ([1.0, 1.0], math.nan, 0.1, False),
        ([1.0, 1.0], 1.0, math.nan, False),
        ([1.0, 1.0], 1.0, math.inf, False),
    ],
)
def test_the_guard_knows_what_would_reach_the_weights(
    gradient: list[float], total: float, rate: float, sound: bool
) -> None:
    _, optimizer = optimizer_of("adam", gradient)
    for given in (rate, torch.tensor(rate)):
        optimizer.param_groups[0]["lr"] = given
        totals = [torch.tensor(0.0), torch.tensor(total)]
        assert is_sound(optimizer, totals) == sound
        flag = flag_of(optimizer, totals)
        assert (flag.item(), flag.dtype, flag.dim()) == (float(not sound), torch.float32, 0)


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_a_fused_step_is_left_out_where_the_flag_is_set(kind: str) -> None:
    weight, optimizer = optimizer_of(kind, [math.nan, 1.0])
    with left_out_where(flag_of(optimizer, [torch.zeros(())]), optimizer):
        optimizer.step()
    assert torch.equal(weight, torch.ones(2))
    assert all(not leaf.any() for leaf in tree_leaves(optimizer.state) if isinstance(leaf, Tensor))
    weight.grad = torch.ones(2)
    with left_out_where(flag_of(optimizer, [torch.zeros(())]), optimizer):
        optimizer.step()
    assert torch.allclose(weight, torch.full((2,), 0.9), atol=2e-3)  # AdamW also decays
    assert not hasattr(optimizer, "found_inf")


def poisoned_by_a_tensor(poisoned: Path) -> None:
    """Make the loss not finite in a way that a captured step repeats."""
    file = poisoned.parent / "poison.py"
    # a gradient that a captured step can make: a tensor decides, not Python
    captured = POISON.replace(
        "next(module.parameters()).grad.view(-1)[0] = float(self.value)", "pass"
    ).replace(
        'return {"G/poison": self.on("loss", 0 * fake.mean())}',
        'return {"G/poison": fake.mean() * self.factor}',
    ).replace(
        "        self._run = run\n",
        "        self._run = run\n"
        '        self.factor.fill_(float("nan") if run.iteration + 1 == self.at else 0.0)\n',
    ).replace(
        "    _run: object", "    _factor: object = PrivateAttr(None)\n    _run: object"
    ).replace(
        "    def here(self, where):",
        "    @property\n    def factor(self):\n"
        "        if self._factor is None:\n            self._factor = "
        "torch.zeros((), device=self.rng.device)\n"
        "        return self._factor\n\n    def here(self, where):",
    )  # fmt: skip
    file.write_text(captured)


def leaves_out_the_ninth_step_of_g(made: Run) -> None:
    """Take twelve iterations; in the ninth alone G has a flag, and does not move."""
    for number in range(12):
        before = {name: tensor.clone() for name, tensor in made.G.named_parameters()}
        iterate(made)
        made.iteration += 1
        moved = [not torch.equal(t, before[name]) for name, t in made.G.named_parameters()]
        bad = [name for name, flag in made.flags.items() if flag]
        assert bad == (["step 1 of G"] if number == 8 else [])
        assert any(moved) == (number != 8)


def test_captured_steps_leave_a_bad_step_out_on_the_device_and_tell_it_later(
    poisoned: Path,
) -> None:
    poisoned_by_a_tensor(poisoned)
    made = build(poisoned, [at("none", "nan", at=9)], Graphs(CpuRecorder()))
    leaves_out_the_ninth_step_of_g(made)
    assert made.execution._recorded, "the steps were replayed"
    assert not [note for note in made.notes if "not captured" in note or "differently" in note]


@pytest.mark.cuda
@pytest.mark.parametrize("way", ["graphs", "off"])
def test_on_a_gpu_a_bad_step_is_left_out_without_waiting(
    way: str, poisoned: Path, gpu: torch.device
) -> None:
    if gpu.type == "cpu" and way == "off":
        pytest.skip("steps on a CPU are checked at once")
    poisoned_by_a_tensor(poisoned)
    loaded = load_recipe(poisoned, [at("none", "nan", at=9), f"compile={way}"])
    made = assembly.assemble(loaded, gpu)
    with made.execution.running():
        leaves_out_the_ninth_step_of_g(made)
    moments = tree_leaves(made.G_optimizer.state_dict())
    assert all(leaf.isfinite().all() for leaf in moments if isinstance(leaf, Tensor))


def test_a_flag_is_read_before_anything_is_saved(poisoned: Path) -> None:
    made = build(poisoned, [at("none", "nan")])
    state = state_of(made)
    assert state["rolled_back"] == 0
    folder = RunFolder(poisoned.parent)
    journal = Journal(folder, 3, 2, 50)
    journal.record(1, {"D/adversarial": torch.tensor(1.0)}, {"step 1 of D": torch.zeros(())})
    journal.record(2, {"D/adversarial": torch.tensor(1.0)}, {"step 1 of D": torch.ones(())})
    with pytest.raises(Diverged, match="iteration 2, step 1 of D: a gradient or the learning"):
        journal.flush()
