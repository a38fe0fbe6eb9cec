"""`ganlab check` refuses before data are read what needs no data, and tries all that a run does."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ganlab.assembly import assemble
from ganlab.cli import main
from ganlab.commands.check import with_tiny_batch
from ganlab.recipe.model import load_recipe
from ganlab.speed.device import pick_device

pytestmark = pytest.mark.usefixtures("few_samples")

HEAD = """\
import torch
from ganlab import Plugin, hookimpl


class Idea(Plugin):
    \"\"\"A plugin of the user's own.\"\"\"

    option: int = 0
    \"\"\"Something to set.\"\"\"

"""
DATA = """\
    @hookimpl
    def sample_real(self, batch_size, device):
        raise AssertionError("data were read")

    @hookimpl
    def evaluation_images(self):
        raise AssertionError("data were read")
"""
LOSS = """\
    @hookimpl
    def generator_loss(self, fake):
        return {"G/idea": 0.1 * fake.abs().mean()}

"""


def check(recipe: Path, *overrides: str, command: str = "check") -> Result:
    changes = [part for override in overrides for part in ("--set", override)]
    return CliRunner().invoke(main, [command, str(recipe), *changes], catch_exceptions=False)


def with_idea(tiny: Path, code: str) -> Path:
    (tiny.parent / "idea.py").write_text(HEAD + code)
    tiny.write_text(tiny.read_text() + 'idea = { use = "./idea.py" }\n')
    return tiny


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["pretraining={ iterations = 4 }"], "leaves none of the run's 4 iterations"),
        (["pretraining={ iterations = 1, losses = ['x'] }"], "'x' is no content loss"),
        (["ldl_loss={}"], "it needs an averaged generator, but there is none; add ema"),
        (["pair_pool={ size = 3 }"], "size = 3 is not a multiple of batch_size = 2; use 2 or 4"),
        (["weight_clipping={}"], "the discriminator's slope is bounded twice"),
        (["consensus={}"], "does not take account of the penalty of gradient_penalty"),
        (["gradient_penalty=false", "apa={ fixed_p = 0.5 }", "consensus={}"], "so does consensus"),
        (
            ["wasserstein=false", "relativistic_average={ base = 'hinge' }", "label_smoothing={}"],
            "base = 'hinge' reads no labels",
        ),
        (["initial_weights={}"], "names no file"),
        (["initial_weights={ generator = 'no.safetensors' }"], "no such weights file"),
        (["perceptual_loss={}"], "needs the weights file"),
        (["lpips_loss={}"], "needs the weights file"),
        (["dists_loss={}"], "needs the weights file"),
        (["lpips={}"], "needs the weights file"),
        (["dists={}"], "needs the weights file"),
        (["fid={}"], "needs the weights file"),
        (["kid={}"], "needs the weights file"),
        (["niqe={}"], "needs the weights file"),
        (["best_metric='psnr_z'"], "is not computed"),
        (["accumulate=3"], "accumulate = 3 does not divide batch_size = 2"),
        (["first='generator'", "d_steps=2"], 'first = "generator" needs one D step'),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
@pytest.mark.parametrize("command", ["check", "run"])
def test_what_needs_no_data_is_refused_before_any_are_read(
    tiny: Path, overrides: list[str], words: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny.parent)
    result = check(with_idea(tiny, DATA), "dead_leaves=false", *overrides, command=command)
    assert result.exit_code == 2 and words in result.stderr, result.stderr
    assert not (tiny.parent / "runs").exists()


def test_without_a_fault_the_data_are_read(tiny: Path) -> None:
    result = check(with_idea(tiny, DATA), "dead_leaves=false")
    assert result.exit_code == 1 and "AssertionError: data were read" in result.stderr


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "tiny_batch"),
    [(16, 1, 2), (16, 4, 8), (16, 16, 16), (15, 1, 3), (1, 1, 1), (45, 5, 15)],
)
def test_the_batch_of_a_check_divides_the_recipes_and_keeps_its_parts(
    tiny: Path, batch_size: int, accumulate: int, tiny_batch: int
) -> None:
    recipe = load_recipe(tiny, [f"batch_size={batch_size}", f"accumulate={accumulate}"])
    small = with_tiny_batch(recipe)
    assert (small.batch_size, small.accumulate) == (tiny_batch, accumulate)
    assert batch_size % tiny_batch == 0 and small.plugins == recipe.plugins


def test_a_recipe_of_several_parts_is_checked_in_parts(tiny: Path) -> None:
    code = LOSS.replace("fake):", "fake):\n        print('a part of', len(fake))")
    result = check(with_idea(tiny, code), "batch_size=8", "accumulate=4")
    assert result.exit_code == 0 and result.stdout.count("a part of 2") % 4 == 0
    assert "a part of 8" not in result.stdout and "a part of 2" in result.stdout


NO_STATE = "    def state_dict(self):\n        return {state}\n\n"
NO_LOAD = "    def load_state_dict(self, state):\n        {body}\n"


@pytest.mark.parametrize(
    ("state", "load", "words"),
    [
        ('{"x": object()}', "pass", "state['x'] is a object"),
        ('{"x": [1, lambda: 1]}', "pass", "state['x'][1] is a function"),
        ('{"x": 1}["y"]', "pass", "KeyError: 'y'"),
        ('{"x": float(id(self))}', "pass", "is not the saved one"),
        ('{"x": 1}', 'state["y"]', "its load_state_dict fails on the state that it saved"),
        ('{"x": 1}', None, "has state_dict but no load_state_dict"),
    ],
)
def test_a_state_that_a_checkpoint_does_not_restore_is_refused(
    tiny: Path, state: str, load: str | None, words: str
) -> None:
    code = LOSS + NO_STATE.format(state=state)
    code += NO_LOAD.format(body=load) if load else ""
    result = check(with_idea(tiny, code))
    assert result.exit_code == 2 and words in result.stderr, result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith(f"{tiny}:14: plugins.idea: ")


def test_a_state_that_is_restored_passes(tiny: Path) -> None:
    code = LOSS + NO_STATE.format(state='{"x": (1, "a", torch.tensor(0.1))}')
    assert check(with_idea(tiny, code + NO_LOAD.format(body="pass"))).exit_code == 0


def test_check_evaluates_with_pictures_and_asks_for_figures_of_the_set(tiny: Path) -> None:
    code = LOSS + (
        "    @hookimpl\n    def evaluate(self, run, images):\n"
        "        assert run.folder.samples.is_dir()\n"
        "        return {'idea': float(len(images))}\n"
    )
    result = check(with_idea(tiny, code), "dead_leaves=false", "builtin={ crop = 32 }")
    assert result.exit_code == 0, result.stderr
    assert "4 held-out images" in result.stdout and "pictures and weights written" in result.stdout
    assert "idea 2" in result.stdout


def test_a_generator_that_its_weights_do_not_give_again_is_refused(tiny: Path) -> None:
    code = LOSS + (
        "    @hookimpl(wrapper=True)\n    def evaluation_generator(self):\n"
        "        return torch.nn.Sequential((yield))\n"
    )
    result = check(with_idea(tiny, code))
    assert result.exit_code == 2
    assert "the weights that a run writes do not give its generator again" in result.stderr


def test_a_check_leaves_no_file(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.parent)
    assert check(tiny).exit_code == 0
    assert [path.name for path in tiny.parent.iterdir()] == [tiny.name]


def test_no_network_is_there_when_the_recipe_is_checked(tiny: Path) -> None:
    code = LOSS + (
        "    @hookimpl\n    def check_recipe(self, run):\n"
        "        assert run.D is None and not hasattr(run, 'G') and not run.held_out\n"
        "        object.__setattr__(self, 'option', 7)\n\n"
        "    @hookimpl\n    def run_start(self, run):\n        assert self.option == 7\n"
    )
    assemble(load_recipe(with_idea(tiny, code)), pick_device("cpu"))
