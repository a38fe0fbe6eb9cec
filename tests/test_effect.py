"""What has no effect is told by `check` and `run`, or refused."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ganlab.cli import main
from ganlab.recipe.model import load_recipe
from ganlab.requirements import warnings_of


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
    planned = invoke("ablate", tiny, "--vary", "pixel_loss.weight=0,1", "--plan")
    assert planned.exit_code == 0, planned.output
