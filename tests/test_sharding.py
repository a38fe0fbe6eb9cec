"""A generator of which each of two processes holds a half: the run is that of one process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ganlab.assembly import assemble
from ganlab.errors import RecipeError
from ganlab.ranks.world import World
from ganlab.recipe.model import load_recipe

ROOT = Path(__file__).parents[1]
HELD = '''
"""A plugin that notes how much of the generator a process holds."""

import json
import os
from pathlib import Path

from ganlab import Plugin, hookimpl


def held(tensors):
    parts = [t.to_local() if hasattr(t, "to_local") else t for t in tensors]
    return sum(part.numel() * part.element_size() for part in parts)


class Held(Plugin):
    """Writes the bytes of weights, gradients and moments of each process beside itself."""

    @hookimpl(wrapper=True)
    def gradients(self, module, role):
        if role == "generator":
            self._gradients = held(p.grad for p in module.parameters())
        return (yield)

    @hookimpl
    def iteration_end(self, run):
        moments = [s for s in run.G_optimizer.state.values()]
        found = {
            "weights": held(run.G.parameters()),
            "gradients": self._gradients,
            "moments": held(s[n] for s in moments for n in ("exp_avg", "exp_avg_sq")),
        }
        name = f"{run.sharded}-{os.environ.get('RANK', 0)}.json"
        Path(__file__).with_name(name).write_text(json.dumps(found))
'''
RECIPE = f'''
extends = "{ROOT / "recipes" / "smoke.toml"}"
precision = "float64"
accumulate = 2
evaluate_every = 10
watch_every = 5

[plugins]
encoder_decoder = {{ width = 16 }}  # so that it has a part that is put together alone
gradient_clipping = {{ generator = 0.005 }}
held = {{ use = "./held.py" }}
'''


def ganlab(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ganlab", *words, "--device", "cpu"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


SHARDED = ("--gpus", "2", "--set", "shard_generator=true")
WAYS: dict[str, tuple[str, ...]] = {"one": (), "two": ("--gpus", "2"), "sharded": SHARDED}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of one process, the sharded run of two, and what each held."""
    parent = tmp_path_factory.mktemp("sharding")
    (parent / "held.py").write_text(HELD)
    (parent / "game.toml").write_text(RECIPE)
    for name in ("one", "sharded"):
        told = ("--runs", parent, "--name", name)
        done = ganlab("run", parent / "game.toml", *told, *WAYS[name])
        assert done.returncode == 0, done.stderr
    return parent


def assert_same(one: Path, other: Path) -> None:
    """That two runs of 20 iterations are one up to rounding."""
    before, after = lines(one), lines(other)
    assert [line.keys() for line in before] == [line.keys() for line in after]
    for a, b in zip(before, after, strict=True):
        assert a == pytest.approx(b, rel=1e-6, abs=1e-9)
    for file in ("generator.safetensors", "best.safetensors"):
        a, b = load_file(one / file), load_file(other / file)
        assert a.keys() == b.keys()
        assert all(torch.allclose(a[name], b[name], rtol=0, atol=1e-9) for name in a)


def test_a_sharded_run_is_the_run_of_one_process(runs: Path) -> None:
    assert_same(runs / "one", runs / "sharded")
    watched = [line for line in lines(runs / "sharded") if "gradient/G/adversarial" in line]
    assert len(watched) > 1


def test_each_process_holds_a_half(runs: Path) -> None:
    one = json.loads((runs / "False-0.json").read_text())
    halves = [json.loads((runs / f"True-{rank}.json").read_text()) for rank in (0, 1)]
    for kind, whole in one.items():
        assert sum(half[kind] for half in halves) == whole
        # a bias or a filter that has no even number of rows is cut unevenly
        assert all(half[kind] == pytest.approx(whole / 2, rel=0.05) for half in halves), kind


def test_a_checkpoint_holds_whole_tensors(runs: Path) -> None:
    for name in ("0000010.pt", "0000020.pt"):
        one, other = (
            torch.load(runs / run / "checkpoints" / name, weights_only=True)
            for run in ("one", "sharded")
        )
        for part in ("networks", "plugins"):
            leaves = [torch.utils._pytree.tree_leaves(state[part]) for state in (one, other)]
            for a, b in zip(*leaves, strict=True):
                assert type(a) is type(b)
                if isinstance(a, torch.Tensor):
                    assert torch.allclose(a, b, rtol=0, atol=1e-9)


@pytest.mark.long
@pytest.mark.parametrize("begun", ["one", "sharded"])
def test_it_goes_on_in_any_other_way(begun: str, runs: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    told = ("--runs", tmp_path, "--name", "cut", "--max-iterations", "10")
    done = ganlab("run", runs / "game.toml", *told, *WAYS[begun])
    assert done.returncode == 0, done.stderr
    ways = [("sharded", SHARDED)]
    if begun == "sharded":
        off = ("--set", "shard_generator=false")
        ways = [("sharded", ("--gpus", "2")), ("one", ()), ("two", ("--gpus", "2", *off))]
    for name, way in ways:
        copied = tmp_path / name
        shutil.copytree(cut, copied)
        done = ganlab("resume", copied, *way)
        assert done.returncode == 0, done.stderr
        assert_same(runs / "one", copied)


class Two(World):
    """A world of two of which nothing is asked: what is refused is refused before."""

    size = 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ('on_nonfinite="roll back"', "on_nonfinite = 'roll back' cannot be had"),
        ("activation_checkpointing=true", "activation_checkpointing = True cannot be had"),
        ("plugins.consensus={}", "cannot differentiate a generator that is shared out"),
    ],
)
def test_what_cannot_be_had_is_refused(setting: str, message: str) -> None:
    off = ("plugins.gradient_penalty=false", "shard_generator=true")
    recipe = load_recipe(ROOT / "recipes" / "smoke.toml", [setting, *off])
    with pytest.raises(RecipeError, match=message):
        assemble(recipe, torch.device("cpu"), world=Two())


SPOIL = '''
"""A plugin that makes a weight not finite in one process."""

import torch

from ganlab import Plugin, hookimpl


class Spoil(Plugin):
    """Spoils a weight that only the second process holds, after iteration 13."""

    @hookimpl
    def iteration_end(self, run):
        if run.iteration == 12 and self.world.rank == 1:
            with torch.no_grad():
                max(run.G.parameters(), key=torch.numel).to_local().view(-1)[0] = torch.nan
'''


@pytest.mark.long
def test_a_number_that_is_not_finite_in_another_process_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "spoil.py").write_text(SPOIL)
    recipe = tmp_path / "spoilt.toml"
    smoke, plugin = ROOT / "recipes" / "smoke.toml", 'spoil = { use = "./spoil.py" }'
    recipe.write_text(
        f'extends = "{smoke}"\ncheckpoint_every = 13\nevaluate_every = 13\n[plugins]\n{plugin}\n'
    )
    done = ganlab("run", recipe, "--runs", tmp_path, "--name", "spoilt", *SHARDED)
    assert done.returncode not in (0, 1, 2), done.stderr
    assert "diverged" in done.stderr
    assert not list((tmp_path / "spoilt" / "checkpoints").glob("*.pt"))
