"""Consensus optimisation on the smallest game, against derivatives worked by hand."""

import math
from pathlib import Path

import pytest
import torch

from ganlab.assembly import assemble
from ganlab.errors import RecipeError
from ganlab.iteration import iterate
from ganlab.recipe.model import load_recipe
from ganlab.run import Run

CPU = torch.device("cpu")

RECIPE = """\
iterations = 500
batch_size = 1
precision = "float64"

[plugins]
dirac = {{ step_size = {step_size} }}
{objective}
{consensus}
"""


def dirac(folder: Path, objective: str, consensus: str, step_size: float = 0.2) -> Run:
    file = folder / "dirac.toml"
    file.write_text(RECIPE.format(objective=objective, consensus=consensus, step_size=step_size))
    return assemble(load_recipe(file), CPU)


def points(run: Run, count: int) -> list[tuple[float, float]]:
    assert run.D is not None
    made = []
    for _ in range(count):
        iterate(run)
        run.iteration += 1
        made.append((run.G.theta.item(), run.D.psi.item()))
    return made


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def nonsaturating(
    theta: float, psi: float, gamma: float, h: float, count: int
) -> list[tuple[float, float]]:
    """L_D = sp(psi theta), L_G = sp(-psi theta), and gamma / 2 (L_D'(psi)^2 + L_G'(theta)^2)."""
    made = []
    for _ in range(count):
        up, down = s(psi * theta), s(-psi * theta)
        # v = (up theta, -down psi); d up / d psi = up down theta, d down / d psi = -up down theta
        of_d = up * theta * up * down * theta * theta + down * psi * (
            down - up * down * theta * psi
        )
        psi = psi - h * (up * theta + gamma * of_d)
        up, down = s(psi * theta), s(-psi * theta)
        of_g = up * theta * (up + up * down * psi * theta) - down * psi * up * down * psi * psi
        theta = theta - h * (-down * psi + gamma * of_g)
        made.append((theta, psi))
    return made


@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_the_engine_follows_the_derivatives_worked_by_hand(tmp_path: Path, gamma: float) -> None:
    run = dirac(tmp_path, "bce = {}", f"consensus = {{ weight = {gamma} }}")
    expected = nonsaturating(1.0, 1.0, gamma, 0.2, 20)
    for got, wanted in zip(points(run, 20), expected, strict=True):
        assert got == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
    "objective", ["bce = { kind = 'minimax' }", "wasserstein = {}", "relativistic_paired = {}"]
)
def test_at_weight_0_it_is_the_plain_game(tmp_path: Path, objective: str) -> None:
    plain = points(dirac(tmp_path, objective, ""), 10)
    damped = points(dirac(tmp_path, objective, "consensus = { weight = 0 }"), 10)
    for one, other in zip(plain, damped, strict=True):
        assert one == pytest.approx(other, abs=1e-12)


@pytest.mark.parametrize(
    "objective", ["bce = {}", "bce = { kind = 'minimax' }", "wasserstein = {}"]
)
def test_it_converges_where_the_plain_game_circles(tmp_path: Path, objective: str) -> None:
    assert math.hypot(*points(dirac(tmp_path, objective, ""), 300)[-1]) > 0.3
    assert math.hypot(*points(dirac(tmp_path, objective, "consensus = {}"), 300)[-1]) < 1e-6


def test_of_wasserstein_it_is_a_plain_pull_to_the_origin(tmp_path: Path) -> None:
    # v = (theta, -psi), so gamma / 2 |v|^2 pulls either player straight to 0
    run = dirac(tmp_path, "wasserstein = {}", "consensus = { weight = 0.5 }", step_size=0.1)
    psi = 1 - 0.1 * (1 + 0.5)
    theta = 1 - 0.1 * (-psi + 0.5)
    assert points(run, 1)[0] == pytest.approx((theta, psi))


def test_a_relativistic_loss_is_differentiated_through_its_real_logits(tmp_path: Path) -> None:
    # psi pays for |dL_G/dtheta|^2 through both logits; real is at 0, so it equals bce exactly
    paired = points(dirac(tmp_path, "relativistic_paired = {}", "consensus = {}"), 10)
    assert paired[-1] == pytest.approx(nonsaturating(1.0, 1.0, 1.0, 0.2, 10)[-1], abs=1e-12)


def test_a_step_moves_one_player_and_leaves_no_gradient_on_the_other(tiny: Path) -> None:
    tiny.write_text(tiny.read_text() + "consensus = {}\n")
    run = assemble(load_recipe(tiny, ["gradient_penalty=false"]), CPU)
    assert run.D is not None
    batch = run.hook.sample_batch(batch_size=2, device=CPU)
    for step, mover, other in (
        (run.hook.discriminator_step, run.D, run.G),
        (run.hook.generator_step, run.G, run.D),
    ):
        other.zero_grad(set_to_none=True)
        before = [[p.detach().clone() for p in module.parameters()] for module in (mover, other)]
        losses = step(run=run, batch=batch)
        assert not all(map(torch.equal, mover.parameters(), before[0]))
        assert all(map(torch.equal, other.parameters(), before[1]))
        assert all(p.grad is None for p in other.parameters())
        assert not any(loss.requires_grad for loss in losses.values())


def test_both_steps_name_the_term_and_the_games_losses(tiny: Path) -> None:
    tiny.write_text(tiny.read_text() + "consensus = {}\n")
    run = assemble(load_recipe(tiny, ["gradient_penalty=false"]), CPU)
    assert set(iterate(run)) == {
        "D/adversarial", "D/consensus", "G/adversarial", "G/pixel_loss", "G/consensus"
    }  # fmt: skip


def test_a_penalty_beside_it_is_refused_with_a_remedy(tiny: Path) -> None:
    tiny.write_text(tiny.read_text() + "consensus = {}\n")
    with pytest.raises(RecipeError, match="penalty of gradient_penalty; remove one of them"):
        assemble(load_recipe(tiny), CPU)
