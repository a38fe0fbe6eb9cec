"""`ganlab check` refuses a loss that does not train its network, or that trains the other one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ganlab.assembly import assemble
from ganlab.checking.audit import Audit
from ganlab.cli import main
from ganlab.iteration import iterate
from ganlab.recipe.model import load_recipe

HEAD = """\
import torch
from ganlab import Plugin, hookimpl


class Idea(Plugin):
    \"\"\"A loss of the user's own.\"\"\"

"""
# what a well-known trainer ships: the adversarial loss of G computed where nothing is recorded
UNDER_NO_GRAD = """\
    @hookimpl
    def generator_loss(self, fake, real):
        with torch.no_grad():
            return {"G/idea": (fake - real).abs().mean()}
"""
ROUNDED = """\
    @hookimpl
    def generator_loss(self, fake, real):
        return {"G/idea": (255 * fake).round().mean() - real.mean()}
"""
ADDS_ZERO = """\
    @hookimpl
    def generator_loss(self, fake):
        return {"G/idea": 0 * fake.sum()}
"""
PENALTY_ON_A_CONSTANT = """\
    @hookimpl
    def penalty(self, discriminator, real):
        with torch.no_grad():
            return {"D/idea": discriminator(real).square().mean()}
"""
# a penalty that makes its own fakes, and lets their gradient through
LEAK = """\
    @hookimpl
    def run_start(self, run):
        object.__setattr__(self, "_idea", run)

    @hookimpl
    def penalty(self, discriminator, condition):
        return {"D/idea": discriminator(self._idea.G(condition)).square().mean()}
"""
# a step of its own that forgets to freeze D
UNFROZEN = """\
    @hookimpl(tryfirst=True)
    def generator_step(self, run, batch):
        from ganlab import generator_losses
        return run.descend(run.G_optimizer, generator_losses, batch)
"""


@pytest.fixture
def check(tiny: Path) -> Callable[[str], tuple[int, str, str]]:
    def check(code: str) -> tuple[int, str, str]:
        (tiny.parent / "idea.py").write_text(HEAD + code)
        tiny.write_text(tiny.read_text() + 'idea = { use = "./idea.py" }\n')
        result = CliRunner().invoke(main, ["check", str(tiny)], catch_exceptions=False)
        return result.exit_code, result.stdout, result.stderr

    return check


@pytest.mark.parametrize("code", [UNDER_NO_GRAD, ROUNDED])
def test_a_generator_loss_without_a_gradient_is_refused(
    check: Callable[[str], tuple[int, str, str]], code: str
) -> None:
    exit_code, _, complaint = check(code)
    assert exit_code == 2
    assert "tiny.toml:14: plugins.idea: G/idea has no gradient on G" in complaint
    assert "torch.no_grad()" in complaint
    assert "Traceback" not in complaint


ALONE_UNDER_NO_GRAD = """\
    @hookimpl
    def generator_loss(self, fake_logits):
        with torch.no_grad():
            return {"G/adversarial": -fake_logits.mean()}
"""
D_DETACHED = """\
    @hookimpl
    def discriminator_loss(self, real_logits, fake_logits):
        return (fake_logits - real_logits).detach().mean()

    @hookimpl
    def generator_loss(self, fake_logits):
        return {"G/adversarial": -fake_logits.mean()}
"""
A_FLOAT = """\
    @hookimpl
    def generator_loss(self, fake):
        return {"G/idea": fake.mean().item()}
"""
A_MAP = """\
    @hookimpl
    def generator_loss(self, fake):
        return {"G/idea": fake.square()}
"""
ROOT_AT_0 = """\
    @hookimpl
    def generator_loss(self, fake):
        return {"G/idea": (fake - fake).square().sum().sqrt()}
"""
NOT_FINITE = """\
    @hookimpl
    def generator_loss(self, fake):
        return {"G/idea": fake.mean() / 0}
"""
ON_ITS_OWN = """\
    @hookimpl(tryfirst=True)
    def generator_step(self, run, batch):
        loss = run.G(batch.condition).square().mean()
        run.G_optimizer.zero_grad()
        loss.backward()
        run.G_optimizer.step()
        return {"G/mine": loss.detach()}
"""


@pytest.mark.parametrize(
    ("code", "without", "complaint"),
    [
        (ALONE_UNDER_NO_GRAD, ["pixel_loss"], "G/adversarial has no gradient on G"),
        (D_DETACHED, ["wasserstein", "gradient_penalty"], "D/adversarial has no gradient on D"),
        (A_FLOAT, [], "G/idea has type float (0."),
        (A_MAP, [], "G/idea has shape [2, 3, 16, 16], but must be one number; take the mean"),
        (ROOT_AT_0, [], "the gradient of G/idea is not finite"),
        (NOT_FINITE, [], "G/idea is inf at the first step"),
    ],
)
def test_a_loss_that_torch_itself_would_stumble_over_is_refused_in_one_line(
    check: Callable[[str], tuple[int, str, str]],
    tiny: Path,
    code: str,
    without: list[str],
    complaint: str,
) -> None:
    if code is ALONE_UNDER_NO_GRAD:
        code = code.replace("-fake_logits", "1 - fake_logits")  # 0 would be no constant to blame
        without = [*without, "wasserstein"]
        code += "    @hookimpl\n    def discriminator_loss(self, real_logits, fake_logits):\n"
        code += "        return (fake_logits - real_logits).mean()\n"
    text = tiny.read_text()
    for name in without:
        text = "".join(li for li in text.splitlines(True) if not li.startswith(f"{name} ="))
    tiny.write_text(text)
    exit_code, _, said = check(code)
    assert exit_code == 2
    assert complaint in said
    assert said.count("\n") == 2 and "Traceback" not in said  # and whose code was run


def test_a_step_that_nobody_could_look_at_is_told(
    check: Callable[[str], tuple[int, str, str]],
) -> None:
    exit_code, report, _ = check(ON_ITS_OWN)
    assert exit_code == 0
    assert "note: the step of G does not go through run.descend" in report
    assert "(G/mine) were not audited" in report


def test_a_penalty_without_a_gradient_is_refused(
    check: Callable[[str], tuple[int, str, str]],
) -> None:
    exit_code, _, complaint = check(PENALTY_ON_A_CONSTANT)
    assert exit_code == 2
    assert "D/idea has no gradient on D" in complaint


def test_a_penalty_whose_gradient_leaks_into_the_generator_is_refused(
    check: Callable[[str], tuple[int, str, str]],
) -> None:
    exit_code, _, complaint = check(LEAK)
    assert exit_code == 2
    assert "D/idea has a gradient on G in the step of D" in complaint


def test_a_generator_step_that_leaves_the_discriminator_unfrozen_is_refused(
    check: Callable[[str], tuple[int, str, str]],
) -> None:
    exit_code, _, complaint = check(UNFROZEN)
    assert exit_code == 2
    assert "G/adversarial has a gradient on D in the step of G" in complaint


def test_a_loss_that_is_0_is_told_and_not_refused(
    check: Callable[[str], tuple[int, str, str]],
) -> None:
    exit_code, report, _ = check(ADDS_ZERO)
    assert exit_code == 0
    row, *_ = [line for line in report.splitlines() if "G/idea" in line]
    assert row.split()[:4] == ["G/idea", "0", "0", "frozen"]
    assert row.endswith("0 here: no gradient on its network")


def test_every_loss_of_both_networks_is_in_the_report(
    tiny: Path, check: Callable[[str], tuple[int, str, str]]
) -> None:
    _, report, _ = check(ADDS_ZERO)
    rows = {line.split()[0]: line.split()[1:] for line in report.splitlines() if line[:2] == "  "}
    assert rows.keys() == {
        "loss", "D/adversarial", "D/gradient_penalty", "G/adversarial", "G/pixel_loss", "G/idea"
    }  # fmt: skip
    assert rows.pop("loss") == ["value", "on", "G", "on", "D"]
    for name, (_, on_g, on_d, *_) in rows.items():
        if name.startswith("D/"):
            assert float(on_g) == 0
            assert float(on_d) > 0
        else:
            assert on_d == "frozen"


def test_consensus_couples_the_players_and_says_so(tiny: Path) -> None:
    recipe = load_recipe(tiny, ["gradient_penalty=false", "wasserstein=false", "bce={}",
                                "consensus={}"])  # fmt: skip
    run = assemble(recipe, torch.device("cpu"))
    audit = Audit(run)
    iterate(run, audit)  # refuses nothing
    reach = {found.loss: found for found in audit.found}
    assert reach["D/consensus"].on_other > 0
    assert not reach["D/consensus"].frozen


def test_the_audited_step_is_the_step_that_training_takes(tiny: Path) -> None:
    def weights(audited: bool) -> list[torch.Tensor]:
        run = assemble(load_recipe(tiny), torch.device("cpu"))
        iterate(run, Audit(run) if audited else None)
        return list(run.G.parameters())

    for one, other in zip(weights(True), weights(False), strict=True):
        assert torch.equal(one, other)
