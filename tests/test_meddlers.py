"""Plugins that meddle with what is not theirs: `ganlab check` names each, and a run warns."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from ganlab.cli import main
from ganlab.monitoring.invariants import REMEDY, step_watched
from ganlab.plugin import Batch

pytestmark = pytest.mark.usefixtures("few_samples")

HEAD = """\
import copy
import random

import torch
from ganlab import Plugin, discriminators, generator_losses, hookimpl


class Meddler(Plugin):
    \"\"\"Changes what is not its own.\"\"\"

"""

D_STEP_MOVES_G = """
    @hookimpl(wrapper=True)
    def discriminator_step(self, run, batch):
        losses = yield
        for parameter in run.G.parameters():
            parameter.data.mul_(0.999)
        return losses
"""
G_STEP_MOVES_D = """
    @hookimpl(wrapper=True)
    def generator_step(self, run):
        with torch.no_grad():
            for parameter in run.D.parameters():
                parameter.clamp_(-0.01, 0.01)
        return (yield)
"""
STEPS_TWICE = """
    @hookimpl(wrapper=True)
    def generator_step(self, run, batch):
        losses = yield
        return losses | run.descend(run.G_optimizer, generator_losses, batch)
"""
STEPS_IN_A_LOSS = """
    @hookimpl
    def penalty(self, discriminator, real):
        loss = discriminator(real).square().mean()
        gradients = torch.autograd.grad(loss, list(discriminator.parameters()), retain_graph=True)
        for parameter, gradient in zip(discriminator.parameters(), gradients):
            parameter.data.sub_(gradient, alpha=0.1)
        return {"D/meddler": loss}
"""
EVAL_MODE = """
    @hookimpl
    def iteration_start(self, run):
        run.D.eval()
"""
EVAL_IN_A_LOSS = """
    @hookimpl
    def penalty(self, discriminator, real):
        return {"D/meddler": discriminator.eval()(real).square().mean()}
"""
COPIES_INTO_THE_AVERAGE = """
    @hookimpl
    def iteration_end(self, run):
        average = run.hook.evaluation_generator(generator=run.G)
        average.load_state_dict(run.G.state_dict())
"""
MOVES_G_AFTER_THE_AVERAGE = """
    @hookimpl(trylast=True)
    def iteration_end(self, run):
        for parameter in run.G.parameters():
            parameter.data.mul_(0.99)
"""
SPOILS_THE_NORM = """
    @hookimpl
    def run_start(self, run):
        from torch.nn.utils import parametrize
        layer = next(m for m in run.D.modules() if parametrize.is_parametrized(m))
        parametrize.remove_parametrizations(layer, "weight")
        layer.weight.data.mul_(3)
"""
TRIPLES_THE_NORM = """
    @hookimpl
    def run_start(self, run):
        from torch.nn.utils import parametrize
        class Triple(torch.nn.Module):
            def forward(self, weight):
                return 3 * weight
        layer = next(m for m in run.D.modules() if parametrize.is_parametrized(m))
        parametrize.register_parametrization(layer, "weight", Triple())
"""
BATCH_IN_PLACE = """
    @hookimpl
    def generator_loss(self, fake, real):
        real.data.clamp_(0.1, 0.9)
        return {"G/meddler": (fake - real).abs().mean()}
"""
AUGMENTS_IN_PLACE = """
    @hookimpl(wrapper=True)
    def augment(self):
        images = yield
        return images.add_(0.1)
"""
OWN_DRAWS = """
    @hookimpl(wrapper=True)
    def augment(self):
        images = yield
        return images + 0.01 * random.random()
"""
HIDDEN_STATE = """
    @hookimpl
    def generator_loss(self, fake):
        calls = getattr(type(self), "calls", {}).get(id(self), 0)
        type(self).calls = {id(self): calls + 1}
        return {"G/meddler": (1 + calls) * fake.square().mean()}
"""
SEEDS = """
    @hookimpl(wrapper=True)
    def augment(self):
        torch.manual_seed(0)
        images = yield
        return images + 0.01 * torch.randn(images.shape)
"""
BACKWARD = """
    @hookimpl
    def penalty(self, discriminator, real):
        loss = discriminator(real).square().mean()
        loss.backward(retain_graph=True)
        return {"D/meddler": loss}
"""
FREEZES = """
    @hookimpl
    def penalty(self, discriminator, real):
        for parameter in discriminator.parameters():
            parameter.requires_grad_(False)
        return {}
"""

EVALUATES = """
    @hookimpl
    def evaluate(self, run, generator):
        {}
        return {{"mine": 1.0}}
"""
EVALUATION = {
    "for p in run.G.parameters(): p.data.mul_(0.9)": "changes the weights of G outside of its step",
    "for p in generator.parameters(): p.data.mul_(0.9)": "changes the state of ema",
    "run.G.eval()": "changes the training mode of a network",
    "run.D.eval()": "changes the training mode of a network",
    "run.D_optimizer.param_groups[0]['lr'] *= 0.5": "changes the settings of an optimizer",
    "generator = run.G.requires_grad_(False)": "changes which weights require a gradient",
    "run.D_optimizer.step()": "takes an optimizer step of D outside of the steps",
    "torch.set_default_dtype(torch.float64)": "leaves torch's default dtype at torch.float64",
    "return 3.0": "returns a float, not a dict: name -> number",
    "return {'mine': 'good'}": "returns {'mine': str}, not a dict: name -> number",
}
RATE_BY_THE_CLOCK = """
    @hookimpl
    def iteration_end(self, run):
        import time
        run.G_optimizer.param_groups[0]["lr"] = 1e-3 * (1 + time.time() % 1)
"""
FAILING_VERDICTS = """
    @hookimpl
    def verdicts(self, history):
        raise KeyError("alpha")
"""
AUGMENTS_NOTHING = """
    @hookimpl(wrapper=True)
    def augment(self):
        yield
"""
LABELS_OF_NO_TENSOR = """
    @hookimpl(wrapper=True)
    def labels(self):
        yield
        return 1.0, 0.0
"""
LABELS_NOT_FINITE = """
    @hookimpl(wrapper=True)
    def labels(self):
        real, fake = yield
        return real / 0, fake
"""
GRADIENTS_NOT_FINITE = """
    @hookimpl(wrapper=True)
    def gradients(self, module):
        told = yield
        for parameter in module.parameters():
            parameter.grad.mul_(float("nan"))
        return told
"""
FAILS_AT_THE_END = """
    @hookimpl
    def run_end(self):
        raise ValueError("late")
"""
REPLACES_D = """
    @hookimpl
    def run_start(self, run):
        run.D = copy.deepcopy(run.D)
"""

# right, but unusual: each must pass
EVALUATES_AND_RESTORES = EVALUATES.format(
    "torch.manual_seed(0); run.D.eval(); run.D(torch.rand(2, 3, 32, 32)); run.D.train()"
)
SMOOTHS_FRESH_LABELS_IN_PLACE = """
    @hookimpl(wrapper=True)
    def labels(self):
        real, fake = yield
        real.mul_(0.9)
        return real, fake
"""
LOOKS_AHEAD = """
    _slow: list = []

    @hookimpl
    def run_start(self, run):
        object.__setattr__(self, "_slow", [p.detach().clone() for p in run.G.parameters()])

    @hookimpl
    def iteration_end(self, run):
        if run.iteration % 3 == 0:
            for slow, parameter in zip(self._slow, run.G.parameters()):
                slow.lerp_(parameter.detach(), 0.5)
                parameter.data.copy_(slow)

    def state_dict(self):
        return {"slow": self._slow}

    def load_state_dict(self, state):
        for mine, saved in zip(self._slow, state["slow"]):
            mine.copy_(saved)
"""
STEPS_TWICE_BY_DESIGN = STEPS_TWICE.replace(
    "\n    @hookimpl", "\n    extra_steps = True\n\n    @hookimpl", 1
)
EVAL_AND_BACK = """
    @hookimpl
    def penalty(self, discriminator, real):
        discriminator.eval()
        logits = discriminator(real)
        discriminator.train()
        return {"D/meddler": 0.01 * logits.square().mean()}
"""
CALLS_THE_BASE = """
    @hookimpl
    def make_optimizer(self, module):
        class Own(torch.optim.SGD):
            def step(self, closure=None):
                return super().step(closure)

        torch.optim.SGD(module.parameters(), 1e-3)  # from now on torch calls hooks in it, too
        return Own(module.parameters(), 1e-3)
"""
FREEZES_HALF_OF_D = """
    @hookimpl
    def run_start(self, run):
        next(run.D.parameters()).requires_grad_(False)
        next(run.D.children()).eval()
"""

DROPS_AUGMENT = """
    @hookimpl(wrapper=True)
    def augment(self, images):
        yield
        return images + 0.01 * torch.randn(images.shape, generator=self.rng)
"""
DROPS_DEGRADE = """
    @hookimpl(wrapper=True)
    def degrade(self, images):
        yield
        return torch.nn.functional.avg_pool2d(images, 4)
"""
DROPS_LABELS = """
    @hookimpl(wrapper=True)
    def labels(self):
        real, fake = yield
        return torch.full_like(real, 0.9), fake
"""
DROPS_AVERAGE = """
    @hookimpl
    def run_start(self, run):
        object.__setattr__(self, "_first", copy.deepcopy(run.G))

    @hookimpl(wrapper=True)
    def evaluation_generator(self):
        yield
        return self._first
"""
SHOWS_NO_IMAGE = """
    @hookimpl(wrapper=True)
    def augment(self):
        images = yield
        return torch.rand(images.shape, generator=self.rng)
"""
KEEPS = """
    @hookimpl(wrapper=True)
    def degrade(self, images):
        return (yield).clamp(0.1, 0.9)

    @hookimpl(wrapper=True)
    def labels(self):
        real, fake = yield
        return 0.9 * real, torch.zeros_like(fake)
"""

GAME = ["wasserstein=false", "gradient_penalty=false", "bce={ kind = 'nonsaturating' }"]


MEDDLER = 'meddler = { use = "./meddler.py" }'


def call(command: str, recipe: Path, code: str, overrides: tuple[str, ...] = ()) -> Result:
    recipe.with_name("meddler.py").write_text(HEAD + code.lstrip("\n"))
    changes = [part for override in overrides for part in ("--set", override)]
    return CliRunner().invoke(main, [command, str(recipe), *changes], catch_exceptions=False)


@pytest.fixture
def meddle(tiny: Path):
    """Runs a command on a recipe in which the meddler is the first plugin."""

    def meddle(code: str, *overrides: str, command: str = "check") -> Result:
        tiny.write_text(tiny.read_text().replace("[plugins]", f"[plugins]\n{MEDDLER}"))
        return call(command, tiny, code, overrides)

    return meddle


@pytest.fixture
def drop(tiny: Path):
    """Runs a command on a recipe in which the meddler is the last plugin."""

    def drop(code: str, plugins: str, command: str = "check") -> Result:
        lines = tiny.read_text().splitlines()
        if "bce" in plugins:
            lines = [line for line in lines if not line.startswith(("wass", "gradient_penalty"))]
        tiny.write_text("\n".join([*lines, plugins, MEDDLER, ""]))
        return call(command, tiny, code)

    return drop


@pytest.mark.parametrize(
    ("code", "overrides", "words"),
    [
        (D_STEP_MOVES_G, [], "discriminator_step changes the weights of G in the step of D"),
        (G_STEP_MOVES_D, [], "generator_step changes the weights of D in the step of G"),
        (STEPS_TWICE, [], "takes one more optimizer step of G than planned in generator_step"),
        (STEPS_IN_A_LOSS, [], "penalty changes the weights of D in the step of D"),
        (EVAL_MODE, [], "iteration_start leaves D in eval mode in the step of D"),
        (EVAL_IN_A_LOSS, [], "penalty changes the training mode of a network"),
        (COPIES_INTO_THE_AVERAGE, ["ema={}"], "iteration_end changes the state of ema"),
        (BATCH_IN_PLACE, [], "generator_loss changes the batch in place"),
        (AUGMENTS_IN_PLACE, [], "augment changes the batch in place"),
        (OWN_DRAWS, [], "augment gives other numbers when the same iteration is taken again"),
        (HIDDEN_STATE, [], "generator_loss gives other numbers in a resumed run"),
        (SEEDS, [], "augment seeds torch's random generator"),
        (BACKWARD, [], "penalty leaves gradients on the weights"),
        (FREEZES, [], "penalty changes which weights require a gradient"),
        (RATE_BY_THE_CLOCK, [], "iteration_end gives other numbers when the same iteration"),
        (LABELS_OF_NO_TENSOR, GAME, "labels returns a tuple, not a tuple of two tensors"),
        (LABELS_NOT_FINITE, GAME, "labels gives numbers that are not finite"),
        (GRADIENTS_NOT_FINITE, [], "gradients makes a gradient that is not finite"),
    ],
)
def test_check_names_the_plugin_that_breaks_an_invariant(
    meddle, tiny: Path, code: str, overrides: list[str], words: str
) -> None:
    result = meddle(code, *overrides)
    assert result.exit_code == 2
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"{tiny}:7: plugins.meddler: its ") and words in last, last


@pytest.mark.parametrize(("line", "words"), EVALUATION.items())
def test_check_names_the_plugin_whose_evaluation_changes_something_or_fails(
    meddle, tiny: Path, line: str, words: str
) -> None:
    result = meddle(EVALUATES.format(line), "ema={}")
    assert result.exit_code == 2
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"{tiny}:7: plugins.meddler: its evaluate {words}"), last


def test_an_answer_that_is_no_tensor_is_told_before_networks_are_built(meddle) -> None:
    result = meddle(AUGMENTS_NOTHING)
    assert result.exit_code == 2
    assert "augment gives NoneType, not a tensor; look at what meddler return" in result.stderr


def test_a_network_that_no_step_moves_is_told(meddle) -> None:
    result = meddle(REPLACES_D)
    assert result.exit_code == 0, result.stderr
    assert "warning: no step moved a weight of D" in result.stdout
    assert "moved a weight of G" not in result.stdout


def test_a_figure_that_is_a_number_of_numpy_is_kept_like_any_other(meddle) -> None:
    result = meddle(EVALUATES.format("return {'mine': __import__('numpy').float32(3)}"))
    assert result.exit_code == 0, result.stderr
    assert "evaluation: mine 3;" in result.stdout


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (FAILING_VERDICTS, "verdicts: KeyError: 'alpha' (meddler.py:"),
        (FAILS_AT_THE_END, "run_end: ValueError: late (meddler.py:"),
        (EVALUATES.format("return generator[0].bias"), "evaluate: TypeError"),
        (EVALUATES.format("return {'mine': 1 / 0}"), "evaluate: ZeroDivisionError: division by"),
    ],
)
def test_check_names_the_plugin_whose_code_raises_an_error(meddle, code: str, words: str) -> None:
    result = meddle(code)
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert "plugin meddler (" in last and f"meddler.py) fails in its {words}" in last


@pytest.mark.parametrize(
    ("code", "overrides", "words"),
    [
        (
            MOVES_G_AFTER_THE_AVERAGE,
            ["ema={}"],
            ["plugins.ema: its average is not", "meddler changes G in iteration_end"],
        ),
        (
            SPOILS_THE_NORM,
            [*GAME, "spectral_norm={}", "patch_discriminator.norm='none'"],
            ["plugins.spectral_norm: the layer", "after an iteration, not 1"],
        ),
        (
            TRIPLES_THE_NORM,
            [*GAME, "patch_discriminator.norm='spectral'"],
            ["tiny.toml: the layer", "has the spectral norm 3"],
        ),
    ],
)
def test_check_measures_what_a_plugin_says_must_hold(
    meddle, code: str, overrides: list[str], words: list[str]
) -> None:
    result = meddle(code, *overrides)
    assert result.exit_code == 2
    assert all(part in result.stderr for part in words), result.stderr


@pytest.mark.parametrize(
    ("code", "overrides"),
    [
        (SMOOTHS_FRESH_LABELS_IN_PLACE, GAME),
        (LOOKS_AHEAD, []),
        (STEPS_TWICE_BY_DESIGN, []),
        (CALLS_THE_BASE, []),
        (EVAL_AND_BACK, []),
        (EVALUATES_AND_RESTORES, []),
        (FREEZES_HALF_OF_D, []),
    ],
)
def test_what_is_unusual_but_right_passes(meddle, code: str, overrides: list[str]) -> None:
    result = meddle(code, *overrides)
    assert result.exit_code == 0, result.stderr


BCE = 'bce = { kind = "nonsaturating" }'


@pytest.mark.parametrize(
    ("code", "plugins", "words"),
    [
        (DROPS_AUGMENT, "instance_noise = {}", "what instance_noise made in augment"),
        (DROPS_DEGRADE, "", "what bicubic made in degrade"),
        (DROPS_LABELS, f"{BCE}\nlabel_smoothing = {{}}", "what label_smoothing made in labels"),
        (DROPS_AVERAGE, "ema = {}", "what ema made in evaluation_generator"),
    ],
)
@pytest.mark.parametrize("command", ["check", "trace"])
def test_a_plugin_that_throws_away_what_came_before_is_told(
    drop, code: str, plugins: str, words: str, command: str
) -> None:
    result = drop(code, plugins, command)
    assert result.exit_code == 0, result.stderr
    told = [line for line in result.stdout.splitlines() if "throws away" in line]
    assert told and all(f"warning: meddler throws away {words}" in line for line in told), told


@pytest.mark.parametrize(
    ("code", "plugins"),
    [
        (DROPS_LABELS, BCE),
        (KEEPS, BCE),
        # one-sided: the label of fakes is still the engine's
        (KEEPS, f"{BCE}\nlabel_smoothing = {{}}"),
    ],
)
def test_nothing_is_told_where_nothing_of_another_plugin_is_lost(
    drop, code: str, plugins: str
) -> None:
    result = drop(code, plugins, "trace")
    assert result.exit_code == 0 and "throws away" not in result.stdout, result.stderr


def test_an_augment_that_shows_d_no_image_is_told_even_alone(drop) -> None:
    result = drop(SHOWS_NO_IMAGE, "", "trace")
    assert "throws away what the engine made in augment" in result.stdout


IN_PLACE = BATCH_IN_PLACE.replace("real.data.clamp_", "real.clamp_")


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (G_STEP_MOVES_D, "the weights of D change in the step of G"),
        (STEPS_TWICE, "a step of G takes 2 optimizer steps, 1 planned"),
        (EVAL_MODE, "D is in eval mode in the step of G"),
        (IN_PLACE, "the batch is changed in place in the step of G"),
    ],
)
def test_a_run_warns_once_of_a_broken_invariant_in_a_watched_step(
    meddle, code: str, sentence: str
) -> None:
    result = meddle(code, "watch_every=2", "iterations=9", command="run")
    assert result.exit_code == 0
    told = [line for line in result.stderr.splitlines() if sentence in line]
    assert told == [f"warning: {sentence}, seen in iteration 2; {REMEDY}"]


@pytest.mark.parametrize(
    ("code", "overrides"),
    [
        (SMOOTHS_FRESH_LABELS_IN_PLACE, GAME),
        (LOOKS_AHEAD, []),
        (STEPS_TWICE_BY_DESIGN, []),
        (CALLS_THE_BASE, []),
        (FREEZES_HALF_OF_D, []),
        ("", [*GAME, "r1={ every = 2 }"]),
        ("", ["gradient_penalty=false", "weight_clipping={}"]),
    ],
)
def test_a_run_does_not_warn_of_what_is_right(meddle, code: str, overrides: list[str]) -> None:
    result = meddle(code, *overrides, "watch_every=1", command="run")
    assert result.exit_code == 0 and REMEDY not in result.stderr, result.stderr


def test_watching_the_invariants_reads_nothing_from_the_device() -> None:
    """On the device `meta` a tensor has no values to read."""
    network = torch.nn.Linear(2, 2, device="meta")
    other = torch.nn.Linear(2, 2, device="meta")
    optimizers = {"G": torch.optim.SGD(network.parameters(), 1.0)}
    batch = Batch(torch.zeros(2, device="meta"), torch.zeros(2, device="meta"))
    with step_watched("G", {"G": network, "D": other}, optimizers, batch, 1) as broken:
        with torch.no_grad():
            other.weight.mul_(2)
        batch.real.add_(1)
        optimizers["G"].step()
    assert broken == [
        "the weights of D change in the step of G",
        "the batch is changed in place in the step of G",
    ]


@pytest.mark.parametrize(
    ("code", "overrides", "words"),
    [
        (
            "    @hookimpl\n    def make_generator(self):\n        pass\n",
            ["encoder_decoder=false"],
            "its make_generator returned NoneType; it must return a torch.nn.Module",
        ),
        (
            "    @hookimpl\n    def make_generator(self):\n        class Two(torch.nn.Linear):\n"
            "            def forward(self, x):\n                return x, x\n"
            "        return Two(1, 1)\n",
            ["encoder_decoder=false"],
            "its generator returned tuple; it must return one tensor of images",
        ),
        (
            "    @hookimpl\n    def make_generator(self):\n"
            "        return torch.nn.Upsample(scale_factor=4)\n",
            ["encoder_decoder=false"],
            "its generator has no parameters, so there is nothing to train",
        ),
        (
            "    @hookimpl\n    def make_discriminator(self):\n        return len\n",
            ["patch_discriminator=false"],
            "its make_discriminator returned builtin_function_or_method; it must return a torch",
        ),
        (
            "    @hookimpl\n    def make_optimizer(self):\n        return 1e-3\n",
            [],
            "its make_optimizer returned float; it must return a torch.optim.Optimizer",
        ),
    ],
)
def test_what_is_built_must_be_of_its_kind(
    meddle, code: str, overrides: list[str], words: str
) -> None:
    result = meddle(code, *overrides)
    assert result.exit_code == 2
    assert "meddler" in result.stderr and words in result.stderr, result.stderr
