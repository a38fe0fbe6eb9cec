"""A run that diverges names the iteration, the step, the loss and the plugin that it began with."""

import json
from pathlib import Path

import pytest
import torch

from ganlab import session
from ganlab.failures import replay
from ganlab.limits import Limits
from ganlab.recipe.model import load_recipe
from ganlab.runs.folder import RunFolder
from ganlab.soundness import weights_are_finite
from ganlab.words import summary

PLANT = '''\
from pydantic import PrivateAttr

from ganlab import Plugin, hookimpl


class Plant(Plugin):
    """Has a factor that is 0 at one iteration only, counted from 1."""

    at: int
    _factor: float = PrivateAttr(1.0)

    @hookimpl
    def iteration_start(self, run):
        self._factor = float(run.iteration + 1 != self.at)

'''
ROOT = {
    "penalty": """\
    @hookimpl
    def penalty(self, discriminator, real):
        return {"D/root": (discriminator(real).mean() * self._factor).square().sqrt()}
""",
    "generator_loss": """\
    @hookimpl
    def generator_loss(self, fake):
        return {"G/root": (fake.mean() * self._factor).square().sqrt()}
""",
    "augment": """\
    @hookimpl(wrapper=True)
    def augment(self):
        images = yield
        return images + 0.1 * (images * self._factor).square().sqrt()
""",
}
VALUE = {
    "penalty": """\
    @hookimpl
    def penalty(self, real_logits):
        return {"D/quotient": real_logits.mean() / self._factor if self._factor else
                real_logits.mean() / 0}
""",
    "degrade": """\
    @hookimpl(wrapper=True)
    def degrade(self):
        images = yield
        return images * (1 if self._factor else float("nan"))
""",
    "augment": """\
    @hookimpl(wrapper=True)
    def augment(self):
        images = yield
        return images / self._factor if self._factor else images * float("inf")
""",
}
LATE = ["iterations=10", "evaluate_every=100", "checkpoint_every=100", "watch_every=0"]


def diverged(recipe: Path, *overrides: str) -> tuple[dict, dict]:
    """Run a recipe that diverges; returns its status and its verdict."""
    loaded = load_recipe(recipe, [*LATE, *overrides])
    folder, code = session.start(loaded, "cpu", Limits(), recipe.parent / "runs")
    assert code == 3
    (line,) = folder.verdicts.read_text().splitlines()
    return folder.read_status(), json.loads(line)


def planted(tiny: Path, body: str, at: int = 6) -> Path:
    (tiny.parent / "plant.py").write_text(PLANT + body)
    tiny.write_text(f'{tiny.read_text()}plant = {{ use = "./plant.py", at = {at} }}\n')
    return tiny


@pytest.mark.parametrize(
    ("hook", "step", "loss"),
    [
        ("penalty", "step 1 of D", "D/root"),
        ("generator_loss", "step 1 of G", "G/root"),
        ("augment", "step 1 of G", "G/adversarial"),
    ],
)
def test_a_gradient_that_is_not_finite_names_its_loss_its_plugin_and_its_line(
    hook: str, step: str, loss: str, tiny: Path
) -> None:
    status, verdict = diverged(planted(tiny, ROOT[hook]))
    assert status["message"].startswith(
        f"iteration 6, {step}: the gradient of {loss} on {step[-1]} is not finite, though its value"
    )
    assert f"It arises in SqrtBackward0, in plant, {hook}, line" in status["message"]
    assert "square().sqrt()" in status["message"]
    assert (status["iteration"], verdict["iteration"], verdict["since"]) == (6, 6, 6)
    assert verdict["sentence"] == f"training exploded at {status['message']}"


@pytest.mark.parametrize(
    ("hook", "step", "loss"),
    [
        ("penalty", "step 1 of D", "D/quotient"),
        ("degrade", "step 1 of D", "D/adversarial"),
        ("augment", "step 1 of D", "D/adversarial"),
    ],
)
def test_a_value_that_is_not_finite_names_the_plugin_that_made_it_first(
    hook: str, step: str, loss: str, tiny: Path
) -> None:
    status, _ = diverged(planted(tiny, VALUE[hook]))
    assert status["message"] == (
        f"iteration 6, {step}: {loss} is not finite; it comes from plant (hook {hook})"
    )


@pytest.mark.parametrize("at", [1, 10])
def test_the_first_and_the_last_iteration_are_found_too(at: int, tiny: Path) -> None:
    status, _ = diverged(planted(tiny, ROOT["generator_loss"], at))
    assert status["message"].startswith(f"iteration {at}, step 1 of G: the gradient of G/root")


@pytest.mark.parametrize(
    "settings",
    [
        ["d_steps=2", "accumulate=2"],
        ['first="generator"'],
        [
            "num_discriminators=2",
            "second={ use = 'patch_discriminator', width = 4, num_layers = 1, downsample = 2 }",
        ],
    ],
    ids=lambda settings: settings[0],
)
def test_it_is_found_however_steps_are_taken(settings: list[str], tiny: Path) -> None:
    status, _ = diverged(planted(tiny, ROOT["penalty"]), *settings)
    assert status["message"].startswith("iteration 6, step 1 of D: the gradient of D/root on D")
    assert "in plant, penalty, line" in status["message"]


OWN_STEP = """\
    @hookimpl
    def generator_step(self, run, batch):
        return run.descend(run.G_optimizer, self.losses, batch)

    def losses(self, run, batch):
        from ganlab import Terms

        made = run.G(batch.condition)
        return Terms({"G/own": (made.mean() * self._factor).square().sqrt()})
"""
WITHOUT_DESCEND = """\
    @hookimpl(wrapper=True)
    def generator_step(self, run):
        import torch

        losses = yield
        with torch.no_grad():
            for parameter in run.G.parameters():
                parameter.mul_(1 if self._factor else float("nan"))
        return losses
"""


def test_a_plugin_with_a_step_of_its_own_is_named(tiny: Path) -> None:
    status, _ = diverged(planted(tiny, OWN_STEP))
    assert status["message"].startswith("iteration 6, step 1 of G: the gradient of G/own on G")
    assert "the loss is of the step of plant" in status["message"]


def test_a_plugin_that_changes_weights_after_the_step_is_named(tiny: Path) -> None:
    status, _ = diverged(planted(tiny, WITHOUT_DESCEND))
    assert status["message"] == (
        "iteration 6: the weights of G are not finite after plant (hook generator_step)"
    )


POISONED_AVERAGE = """\
    @hookimpl
    def iteration_end(self, run):
        average = run.hook.evaluation_generator(generator=run.G)
        for parameter in average.parameters():
            parameter.data.mul_(1 if self._factor else float("nan"))
"""


def test_an_averaged_generator_that_is_not_finite_is_never_kept(tiny: Path) -> None:
    tiny.write_text(tiny.read_text() + "ema = {}\n")
    status, _ = diverged(planted(tiny, POISONED_AVERAGE), "checkpoint_every=2")
    assert status["message"] == (
        "iteration 6: the weights of the evaluated generator are not finite after plant "
        "(hook iteration_end)"
    )


def test_no_single_loss_is_blamed_for_a_learning_rate_that_is_far_too_large(tiny: Path) -> None:
    tiny.write_text(tiny.read_text() + "adam = { learning_rate = 1e30 }\n")
    status, _ = diverged(tiny)
    assert status["message"] == (
        "iteration 1, step 1 of G: G/adversarial is not finite; it comes from the output of D "
        "(the weights of D reach 1e+30)"
    )


GRADIENTS = """\
    @hookimpl(wrapper=True)
    def gradients(self, module, role):
        told = yield
        for parameter in module.parameters():
            if role == "generator" and not self._factor:
                parameter.grad.div_(0)
        return told
"""


def test_a_plugin_that_changes_gradients_is_named(tiny: Path) -> None:
    status, _ = diverged(planted(tiny, GRADIENTS))
    assert status["message"] == (
        "iteration 6, step 1 of G: the gradient of G is not finite after plant (hook gradients)"
    )


OPTIMIZER = """\
    @hookimpl
    def make_optimizer(self, module):
        import torch

        class Huge(torch.optim.SGD):
            pass

        return Huge(module.parameters(), lr=3e38)
"""


def test_a_step_that_is_too_long_for_float32_is_told_as_such(tiny: Path) -> None:
    status, _ = diverged(planted(tiny, OPTIMIZER))
    assert status["message"].startswith(
        "iteration 1, step 1 of D: every loss and its gradient is finite, but after the step of "
        "Huge the weights of D are not. No single loss is the cause"
    )


def test_a_run_tells_from_which_checkpoint_it_can_be_resumed(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted(tiny, ROOT["penalty"])
    status, _ = diverged(tiny, "checkpoint_every=4", "watch_every=1")
    assert status["message"].startswith("iteration 6, step 1 of D: the gradient of D/root on D")
    told = capsys.readouterr().err
    assert "taking iterations 5 to 6 again" in told
    assert "the last checkpoint is of iteration 4" in told
    diverged(tiny)
    told = capsys.readouterr().err
    assert "taking iterations 1 to 6 again" in told
    assert "there is no checkpoint yet" in told


def test_the_summary_tells_the_cause_once_also_after_an_earlier_verdict(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    known = {"iteration": 6, "of": 10, "message": "iteration 6: G/bad is not finite"}
    for verdict in ("D exploded from iteration 3", f"training exploded at {known['message']}"):
        folder.write_status("diverged", **known, verdicts=[verdict])
        assert summary(folder).count(known["message"]) == 1


def test_no_more_than_the_limit_is_taken_again(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MOST_AGAIN", 5)
    status, _ = diverged(planted(tiny, ROOT["penalty"]))
    assert "at most 5 are taken again" in status["message"]


def test_a_fault_that_does_not_come_back_is_told_as_such(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = ROOT["penalty"].replace("self._factor", "type(self).once()") + (
        "\n    @classmethod\n    def once(cls):\n        counter.append(0)\n"
        "        return float(len(counter) != 3)\n"
    )
    planted(tiny, once)
    file = tiny.parent / "plant.py"
    file.write_text("counter = []\n" + file.read_text())
    status, _ = diverged(tiny)
    assert (
        "is not finite; taken again from iteration 1 on, it did not come back" in status["message"]
    )


def test_a_buffer_counts_like_a_weight_and_a_large_weight_is_finite() -> None:
    norm = torch.nn.BatchNorm2d(2)
    assert weights_are_finite(norm)
    assert weights_are_finite(torch.nn.Sequential())
    norm.weight.data.fill_(1e30)  # its square is too large for float32, the weight is not
    assert weights_are_finite(norm)
    norm.running_var.fill_(float("inf"))
    assert not weights_are_finite(norm)
