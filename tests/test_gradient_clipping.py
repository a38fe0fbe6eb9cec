"""A step is taken down a gradient of limited norm, and the norm before is logged."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from ganlab.assembly import assemble
from ganlab.errors import Diverged, RecipeError
from ganlab.iteration import iterate
from ganlab.recipe.model import load_recipe
from ganlab.run import Run, discriminators
from ganlab.runs.folder import RunFolder
from ganlab.runs.journal import Journal

EXACT = ("gradient_penalty=false", 'precision="float64"', "watch_every=0")
TWO = ("num_discriminators=2", 'second={ use = "patch_discriminator", width = 6, num_layers = 1 }')
BOTH = "gradient_clipping={ generator = 0.001, discriminator = 0.002 }"


def build(file: Path, *overrides: str) -> Run:
    return assemble(load_recipe(file, [*EXACT, *overrides]), torch.device("cpu"))


def weights(run: Run) -> list[Tensor]:
    networks = [run.G, *discriminators(run)]
    return [p.detach().clone() for network in networks for p in network.parameters()]


@pytest.mark.parametrize("others", [(), ("accumulate=2",), TWO, ("first=generator",)])
def test_it_is_torchs_clipping_to_the_last_bit(tiny: Path, others: tuple[str, ...]) -> None:
    clipped, expected = build(tiny, *others, BOTH), build(tiny, *others)
    of_d: list[Tensor] = []
    of_g: list[Tensor] = []
    expected.D_optimizer.register_step_pre_hook(
        lambda *_: of_d.extend(
            clip_grad_norm_(D.parameters(), 0.002) for D in discriminators(expected)
        )
    )
    expected.G_optimizer.register_step_pre_hook(
        lambda *_: of_g.append(clip_grad_norm_(expected.G.parameters(), 0.001))
    )
    for _ in range(2):
        of_d.clear()
        of_g.clear()
        logged, plain = iterate(clipped), iterate(expected)
        assert min(of_d) > 0.002 and min(of_g) > 0.001  # else nothing was clipped
        assert logged.pop("D/gradient_norm") == sum(of_d) / len(of_d)
        assert logged.pop("G/gradient_norm") == of_g[0]
        assert logged == plain
    assert all(map(torch.equal, weights(clipped), weights(expected)))


def test_a_smaller_gradient_is_not_changed_at_all(tiny: Path) -> None:
    plain, clipped = build(tiny), build(tiny, "gradient_clipping={ generator = 1e6 }")
    logged = [iterate(run) for run in (plain, clipped)]
    assert logged[1].keys() - logged[0].keys() == {"G/gradient_norm"}
    assert all(map(torch.equal, weights(plain), weights(clipped)))


def test_the_extra_step_of_a_lazy_penalty_is_clipped_and_the_norm_of_the_d_step_is_logged(
    tiny: Path,
) -> None:
    run = build(tiny, "adam={}", "r1={ every = 2, weight = 1e4 }", BOTH)
    norms: list[Tensor] = []
    run.D_optimizer.register_step_pre_hook(
        lambda *_: norms.append(
            torch.stack([p.grad.square().sum() for p in run.D.parameters() if p.grad is not None])
            .sum()
            .sqrt()
        )
    )
    alone = iterate(build(tiny, "adam={}", "r1={ every = 2, weight = 0 }", BOTH))
    logged = iterate(run)
    assert [norm.item() for norm in norms] == pytest.approx([0.002, 0.002], rel=1e-3)
    assert logged["D/gradient_norm"] == alone["D/gradient_norm"]


BROKEN = """\
from ganlab import Plugin, hookimpl


class Broken(Plugin):
    @hookimpl
    def generator_loss(self, fake):
        return {"G/broken": (fake - fake.detach()).norm(dim=1).pow(0.5).sum()}
"""


def test_a_gradient_that_is_not_finite_is_named_in_its_own_iteration(tiny: Path) -> None:
    (tiny.parent / "broken.py").write_text(BROKEN)
    run = build(tiny, 'broken={ use = "./broken.py" }', BOTH)
    journal = Journal(RunFolder(tiny.parent), total=4, images=2, report_every=1)
    with pytest.raises(Diverged, match=r"iteration 1, step 1 of G: .* is not finite"):
        journal.record(1, iterate(run))


@pytest.mark.parametrize("value", ["1e200", "inf"])
def test_a_gradient_whose_norm_is_not_finite_is_told_and_not_clipped_to_nothing(
    tiny: Path, value: str
) -> None:
    text = BROKEN.replace("(fake - fake.detach()).norm(dim=1).pow(0.5).sum()", "VALUE * fake.sum()")
    (tiny.parent / "broken.py").write_text(text.replace("VALUE", f"float('{value}')"))
    run = build(tiny, 'broken={ use = "./broken.py" }', BOTH, 'on_nonfinite="skip"')
    before = weights(run)[: len(list(run.G.parameters()))]
    losses = iterate(run)
    assert [skip.step for skip in run.skips] == ["step 1 of G"]
    assert "G/gradient_norm" not in losses and losses["D/gradient_norm"].isfinite()
    assert all(map(torch.equal, before, weights(run)))


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["gradient_clipping={}"], "clips nothing; set generator, discriminator or both"),
        (["gradient_clipping={ generator = 0 }"], "must be more than 0"),
        (
            [BOTH, "more={ use = 'gradient_clipping', discriminator = 1 }"],
            "gradient_clipping and more both clip the discriminator; leave one out",
        ),
        (["d_steps=0", "wasserstein=false", "patch_discriminator=false", BOTH], "no discriminator"),
    ],
)
def test_what_it_cannot_do_is_refused(tiny: Path, overrides: list[str], fault: str) -> None:
    with pytest.raises(RecipeError, match=fault):
        build(tiny, *overrides)


def test_each_network_may_have_an_instance_of_its_own(tiny: Path) -> None:
    both = build(tiny, BOTH)
    apart = build(
        tiny,
        "gradient_clipping={ generator = 0.001 }",
        "of_d={ use = 'gradient_clipping', discriminator = 0.002 }",
    )
    assert iterate(both) == iterate(apart)
