"""What has no effect is told by `check` and `run`, or refused."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from ganlab import NoEffect
from ganlab.assembly import assemble
from ganlab.checking.effect import Beginning, plugins_without_effect
from ganlab.cli import main
from ganlab.recipe.discovery import find_plugin, installed
from ganlab.recipe.file import Origin
from ganlab.recipe.model import load_recipe
from ganlab.requirements import warnings_of

pytestmark = pytest.mark.usefixtures("few_samples")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False)


def settings(*changes: str) -> list[str]:
    return [part for change in changes for part in ("--set", change)]


FIGURE = """\
from ganlab import Plugin, hookimpl


class Mine(Plugin):
    @hookimpl
    def evaluate(self):
        return {self.name: 1.0}
"""
NEVER = "is never reached: the run has"
IDLE = [
    (["pixel_loss.weight=0"], "pixel_loss.weight is 0 throughout, so it has no effect"),
    (["wasserstein.weight={from=0,to=1,over=9,after=9}"], "wasserstein.weight is 0 throughout"),
    (["wasserstein.weight={from=2,to=1,over=9,after=9}"], "wasserstein.weight never changes"),
    (["ema={decay=0.0}"], "ema.decay is 0 throughout"),
    (["instance_noise={sigma=0}"], "instance_noise.sigma is 0 throughout"),
    (["gaussian_noise={sigma=[0,0]}"], "gaussian_noise.sigma is (0.0, 0.0) throughout"),
    (["jpeg={probability=0}"], "jpeg.probability is 0 throughout"),
    (["diff_augment={brightness=0}"], "diff_augment.brightness is 0 throughout"),
    (["wasserstein=false", "bce={}", "label_smoothing={real_label=1}"], "real_label is 1"),
    (["wasserstein=false", "bce={}", "label_flipping={probability=0}"], "probability is 0"),
    (["ada={fixed_p=0.0}"], "ada.fixed_p is 0 throughout"),
    (["ada={every=4}"], f"ada.every = 4 {NEVER} 4 D steps"),
    (["lecam={}"], f"lecam.start = 1,000 {NEVER} 4 D steps"),
    (["lecam={start=2}", "pretraining={iterations=2}"], f"lecam.start = 2 {NEVER} 2 D steps"),
    (["lecam={start=8}", "d_steps=2"], f"lecam.start = 8 {NEVER} 8 D steps"),
    (["lr={use='learning_rate_schedule',kind='linear',over=9,after=4}"], "lr.after = 4 is never"),
    (["lr={use='learning_rate_schedule',kind='step',milestones=[2,7]}"], "lr.milestones = 7 is"),
    (["lr={use='learning_rate_schedule',kind='linear',over=4,end=1.0}"], "lr.end is 1 throughout"),
    (["watch_every=5"], f"watch_every = 5 {NEVER} 4 iterations"),
    (
        ["instance_noise={sigma={from=1,to=0,over=2}}", "pretraining={iterations=2}"],
        "instance_noise.sigma is 0 from D's first step on (iteration 2), so it has no effect",
    ),
    (
        ["gradient_penalty.weight={from=9,to=1,over=2}", "pretraining={iterations=2}"],
        "gradient_penalty.weight never changes: it has ended before D's first step",
    ),
]


@pytest.mark.parametrize(("changes", "words"), IDLE, ids=lambda value: str(value)[:60])
def test_an_option_without_effect_in_this_run_is_told(
    tiny: Path, changes: list[str], words: str
) -> None:
    told = [warning for warning in warnings_of(load_recipe(tiny, changes)) if words in warning]
    assert len(told) == 1


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["pixel_loss.weight={from=0,to=1,over=3}"],
        ["pixel_loss.weight={from=0,to=1,over=9,after=2}"],
        ["consistency={}"],  # its weight for fakes is 0 by default
        ["ada={every=3}", "wasserstein=false", "gradient_penalty=false", "bce={}"],
        ["lecam={start=3}"],
        ["lecam={start=7}", "d_steps=2"],
        ["lr={use='learning_rate_schedule',kind='step',milestones=[3]}"],
        ["instance_noise={sigma={from=1,to=0,over=3}}", "pretraining={iterations=2}"],
        ["watch_every=4"],
        ["watch_every=0"],
    ],
    ids=str,
)
def test_an_option_with_an_effect_is_not_told(tiny: Path, changes: list[str]) -> None:
    assert warnings_of(load_recipe(tiny, changes)) == []


def test_check_and_run_tell_it_in_one_line_each(tiny: Path) -> None:
    changes = settings("pixel_loss.weight=0")
    line = "warning: pixel_loss.weight is 0 throughout, so it has no effect"
    checked = invoke("check", tiny, *changes)
    assert checked.exit_code == 0
    assert checked.stdout.splitlines().count(line) == 1
    ran = invoke("run", tiny, *changes, "--runs", tiny.parent / "runs")
    assert ran.exit_code == 0
    assert ran.stderr.splitlines().count(line) == 1


def test_a_best_metric_that_no_evaluation_gives_is_refused_or_told(tiny: Path) -> None:
    refused = invoke("check", tiny, *settings("best_metric=ssim_y"))
    assert refused.exit_code == 2
    assert "best_metric = 'ssim_y' has no effect: there are no held-out" in refused.stderr
    # whether a plugin computes it is known at the first evaluation only
    (tiny.parent / "mine.py").write_text(FIGURE)
    tiny.write_text(tiny.read_text() + "mine = { use = './mine.py' }\n")
    changes = settings("best_metric=radius", "evaluate_every=2")
    ran = invoke("run", tiny, *changes, "--runs", tiny.parent)
    assert ran.exit_code == 0
    told = [line for line in ran.stderr.splitlines() if line.startswith("warning")]
    assert told == [
        "warning: best_metric = 'radius' has no effect: no evaluation gives it, only mine; no "
        "best generator is kept"
    ]


@pytest.mark.parametrize("command", ["check", "run"])
def test_share_forward_beside_the_wrong_order_is_refused(tiny: Path, command: str) -> None:
    refused = invoke(command, tiny, *settings("share_forward=false"))
    assert refused.exit_code == 2
    assert "--set share_forward=false: share_forward = false has no effect" in refused.stderr
    right = invoke("check", tiny, *settings("share_forward=false", "first=generator"))
    assert right.exit_code == 0


def test_the_resolved_recipe_of_a_run_is_not_refused_for_its_defaults(tiny: Path) -> None:
    assert invoke("run", tiny, "--runs", tiny.parent, "--name", "whole").exit_code == 0
    again = tiny.parent / "whole" / "recipe.toml"
    assert "share_forward = true" in again.read_text()
    assert invoke("check", again).exit_code == 0


def test_an_ablation_may_set_a_weight_to_0(tiny: Path) -> None:
    scored = ("--set", "dead_leaves=false", "--set", "builtin={ crop = 16, num_leaves = 2 }")
    planned = invoke("ablate", tiny, "--vary", "pixel_loss.weight=0,1", "--plan", *scored)
    assert planned.exit_code == 0, planned.output


# --- measured: with and without a plugin --------------------------------------------------

HEAD = """\
import torch
from pydantic import PrivateAttr
from typing import ClassVar
from ganlab import Plugin, hookimpl


class Mine(Plugin):
"""
IDLE_PLUGINS = {
    "a loss of 0": """
    @hookimpl
    def generator_loss(self, fake):
        return {"G/mine": 0 * fake.mean()}
""",
    "a wrapper that passes on": """
    @hookimpl(wrapper=True)
    def augment(self):
        return (yield)
""",
    "a wrapper of gradients that scales by 1": """
    @hookimpl(wrapper=True)
    def gradients(self, module):
        told = yield
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(1.0)
        return told
""",
    "noise of 0 that draws": """
    @hookimpl(wrapper=True)
    def augment(self):
        images = yield
        return images + 0 * torch.randn(images.shape, generator=self.rng)
""",
    "a counter that nothing reads": """
    _count: int = PrivateAttr(0)
    _mean: float = PrivateAttr(0.0)

    @hookimpl(wrapper=True)
    def discriminator_step(self):
        losses = yield
        self._count += 1
        self._mean += 0.5
        return losses
""",
    "an average that is no average": """
    @hookimpl(wrapper=True)
    def evaluation_generator(self):
        return (yield)
""",
    "an event without consequence": """
    @hookimpl
    def iteration_start(self, run):
        self.rng
""",
}
ACTING_PLUGINS = {
    "a wrapper that acts": """
    @hookimpl(wrapper=True)
    def augment(self):
        return 0.9 * (yield)
""",
    "an event that happens once in a million images": """
    @hookimpl(wrapper=True)
    def augment(self):
        images = yield
        u = torch.rand(len(images), 1, 1, 1, generator=self.rng)
        return torch.where(u < 1e-6, 0.5, images)
""",
    "an effect after many steps": """
    _count: int = PrivateAttr(0)

    @hookimpl(wrapper=True)
    def discriminator_step(self):
        losses = yield
        self._count += 1
        return losses

    @hookimpl(wrapper=True)
    def augment(self):
        images = yield
        return images * 0.9 if self._count > 5000 else images
""",
    "an effect at every 7th step": """
    _count: int = PrivateAttr(0)

    @hookimpl(wrapper=True)
    def generator_step(self):
        self._count += 1
        return (yield)

    @hookimpl(wrapper=True)
    def augment(self):
        images = yield
        return images * 0.9 if self._count % 7 == 0 and self._count else images

    def state_dict(self):
        return {"count": self._count}

    def load_state_dict(self, state):
        self._count = state["count"]
""",
    "a probability that has yet to rise": """
    _p: torch.Tensor = PrivateAttr(default_factory=lambda: torch.zeros(()))

    @hookimpl(wrapper=True)
    def augment(self):
        images = yield
        u = torch.rand(len(images), 1, 1, 1, generator=self.rng)
        return torch.where(u < self._p, 0.5, images)
""",
    "an effect in the middle of the run": """
    begin: int = 1000
    end: int = 2000

    @hookimpl
    def iteration_start(self, run):
        for group in run.G_optimizer.param_groups:
            group["lr"] = 1e-3 if self.begin <= run.iteration < self.end else 1e-4
""",
    "one that only looks on": """
    observes: ClassVar[bool] = True

    @hookimpl
    def iteration_end(self, losses):
        self.rng
""",
    "a figure that is gathered in training": """
    @hookimpl
    def iteration_end(self, losses):
        self.rng

    @hookimpl
    def evaluate(self):
        return {"mine": 1.0}
""",
}


def without_effect(file: Path, name: str, *changes: str) -> list[str]:
    """What is said of one plugin of a recipe."""
    run = assemble(load_recipe(file, changes), torch.device("cpu"))
    return list(plugins_without_effect(run, Beginning(run), [run.recipe.plugins[name]]))


@pytest.fixture
def mine(tiny: Path, request: pytest.FixtureRequest) -> Path:
    """The tiny recipe, of 3000 iterations, with a plugin of the user's own in a file beside it."""
    (tiny.parent / "mine.py").write_text(HEAD + request.param)
    tiny.write_text(tiny.read_text().replace("iterations = 4", "iterations = 3000"))
    tiny.write_text(tiny.read_text() + "mine = { use = './mine.py' }\n")
    return tiny


@pytest.mark.parametrize("mine", IDLE_PLUGINS.values(), ids=IDLE_PLUGINS, indirect=True)
def test_a_plugin_that_changes_nothing_is_told(mine: Path) -> None:
    (told,) = without_effect(mine, "mine")
    assert told.startswith("mine has no effect: without it, iterations 0, ")
    assert told.endswith(", 2,999 give the same losses and the same weights")


@pytest.mark.parametrize("mine", ACTING_PLUGINS.values(), ids=ACTING_PLUGINS, indirect=True)
def test_a_plugin_with_an_effect_is_not_told(mine: Path) -> None:
    assert without_effect(mine, "mine") == []


@pytest.mark.parametrize("mine", [IDLE_PLUGINS["a loss of 0"]], indirect=True)
def test_check_tells_of_a_strangers_plugin_without_effect(mine: Path) -> None:
    checked = invoke("check", mine)
    assert checked.exit_code == 0
    told = [line for line in checked.stdout.splitlines() if line.startswith("warning:")]
    assert len(told) == 1
    assert told[0].startswith("warning: mine has no effect")


def test_a_hook_without_effect_is_named_when_another_hook_has_one(tiny: Path) -> None:
    (told,) = without_effect(tiny, "wasserstein", "wasserstein.weight=0")
    assert told.startswith("wasserstein, in generator_loss, has no effect")


def test_noise_that_has_ended_before_d_begins_has_no_effect(tiny: Path) -> None:
    changes = ("iterations=99", "pretraining={iterations=50}")
    noise = "instance_noise={sigma={from=1,to=0,over=OVER}}"
    assert without_effect(tiny, "instance_noise", *changes, noise.replace("OVER", "40"))
    assert not without_effect(tiny, "instance_noise", *changes, noise.replace("OVER", "60"))


def test_plugins_that_act_late_or_elsewhere_are_not_told(tiny: Path) -> None:
    recipe = load_recipe(
        tiny,
        [
            "iterations=5000", "wasserstein=false", "gradient_penalty=false", "bce={}",
            "ema={}", "lecam={}", "ada={}", "adaptive_discriminator={}", "pair_pool={}",
            "label_flipping={probability=0.001}", "r1={every=16}",
            "jpeg={probability=0.01}", "pretraining={iterations=1000}", "feature_matching={}",
            "gradient_clipping={generator=9}",
            "learning_rate_schedule={kind='step',milestones=[2000]}",
        ],
    )  # fmt: skip
    run = assemble(recipe, torch.device("cpu"))
    assert list(plugins_without_effect(run, Beginning(run), recipe.plugins.values())) == []


def test_measuring_leaves_the_run_as_it_was(tiny: Path) -> None:
    run = assemble(load_recipe(tiny, ["ema={}", "ada={}"]), torch.device("cpu"))
    before = [value.clone() for value in run.G.state_dict().values()]
    list(plugins_without_effect(run, Beginning(run), run.recipe.plugins.values()))
    assert all(map(torch.equal, before, run.G.state_dict().values()))
    assert (run.iteration, run.progress.game_began) == (0, None)
    assert run.recipe.plugins["ada"].p == 0


OTHERS = {  # what an option needs beside it in its plugin's table
    ("learning_rate_schedule", "end"): "kind='linear', over=2",
    ("learning_rate_schedule", "factor"): "kind='step', milestones=[1]",
    ("learning_rate_schedule", "warmup"): "kind='constant'",
    ("diff_augment", "cutout"): "policy=['cutout']",
    ("ms_ssim_loss", "weight"): "scales=2",
}
# beside these options others of the same plugin act, or the effect is of rounding
NOT_ALONE = {"brightness", "saturation", "contrast", "translation", "real", "fake", "fixed_p"}
# these need files of weights; consensus logs other values than the engine's step; a plugin that
# takes part in building is not measured
NOT_MEASURED = {"dists_loss", "lpips_loss", "perceptual_loss", "consensus", "learning_rate_group"}


def declared() -> Iterator[tuple[str, str, object]]:
    """Each plugin with an option that has no effect at some value."""
    for name in sorted(installed().keys() - NOT_MEASURED):
        plugin = find_plugin(name, Origin(None, text=name))[0]
        for option, field in plugin.model_fields.items():
            for mark in field.metadata:
                if isinstance(mark, NoEffect) and option not in NOT_ALONE:
                    yield name, option, mark.at


@pytest.mark.long
@pytest.mark.parametrize(("name", "option", "value"), list(declared()))
def test_an_option_has_no_effect_where_its_plugin_says_so(
    tiny: Path, name: str, option: str, value: object
) -> None:
    written = str(value).replace("(", "[").replace(")", "]")
    inside = ", ".join(filter(None, (OTHERS.get((name, option)), f"{option}={written}")))
    plugin = find_plugin(name, Origin(None, text=name))[0]
    base = ["wasserstein=false", "gradient_penalty=false", "iterations=3"]
    base += [] if hasattr(plugin, "discriminator_loss") else ["bce={}"]
    base += ["ema={}"] if name == "ldl_loss" else []
    base += ["dead_leaves={crop=32}"] if name == "ms_ssim_loss" else []
    base = [change for change in base if not change.startswith(f"{name}=")]
    changes = [*base, f"{name}={{ {inside} }}"]
    assert without_effect(tiny, name, *changes)
    assert any(
        w.startswith(f"{name}.{option} is ") for w in warnings_of(load_recipe(tiny, changes))
    )
