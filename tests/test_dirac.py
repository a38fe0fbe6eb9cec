"""Dirac-GAN through the real engine: closed-form trajectories pin the loop and every detach."""

from pathlib import Path

import pytest
import torch

from ganlab.engine import assemble, iterate
from ganlab.recipe import load_recipe

HERE = Path(__file__).parent / "dirac"

RECIPE = """\
iterations = 500
batch_size = 1
precision = "float64"
d_steps = {d_steps}

[plugins]
dirac = {{ use = "./dirac.py", step_size = {step_size} }}
{losses}
"""

NONSATURATING = "bce = { kind = 'nonsaturating' }"
MINIMAX = "bce = { kind = 'minimax' }"
WGAN_GP = "wasserstein = {{}}\ngradient_penalty = {{ weight = {weight}, target = {target} }}"


def trajectory(
    folder: Path, losses: str, step_size: float, d_steps: int = 1, iterations: int = 500
) -> list[tuple[float, float]]:
    (folder / "dirac.py").write_text((HERE / "dirac.py").read_text())
    file = folder / "dirac.toml"
    file.write_text(RECIPE.format(losses=losses, step_size=step_size, d_steps=d_steps))
    run = assemble(load_recipe(file), torch.device("cpu"))
    assert run.D is not None
    points = []
    for _ in range(iterations):
        iterate(run)
        run.iteration += 1
        points.append((run.G.theta.item(), run.D.psi.item()))
    return points


def assert_golden(
    points: list[tuple[float, float]], golden: dict[int, tuple[float, float]]
) -> None:
    for n, expected in golden.items():
        assert points[n - 1] == pytest.approx(expected, abs=1e-6), n


# Golden values: closed-form recurrences, D step first, one sample, from (theta, psi) = (1, 1).
@pytest.mark.parametrize(
    ("losses", "step_size", "d_steps", "golden"),
    [
        (
            NONSATURATING,
            0.1,
            1,
            {
                1: (1.02628257, 0.92689414),
                10: (1.19577328, 0.26265998),
                100: (-0.31832352, 0.66485234),
            },
        ),
        (MINIMAX, 0.2, 1, {10: (1.264307, -0.440168)}),
        ("wasserstein = {}", 0.2, 1, {10: (0.402036, -1.240415)}),
        (WGAN_GP.format(weight=0.35, target=1), 0.2, 1, {10: (0.651464, -1.250808)}),
        (WGAN_GP.format(weight=0.35, target=0), 0.2, 1, {10: (0.376813, -0.783474)}),
        (WGAN_GP.format(weight=10, target=1), 0.02, 5, {10: (1.189245, 0.941559)}),
    ],
    ids=["nonsaturating", "minimax", "wgan", "wgan-gp", "wgan-gp target 0", "wgan-gp 5 D steps"],
)
def test_the_engine_follows_the_closed_form(
    tmp_path: Path, losses: str, step_size: float, d_steps: int, golden: dict
) -> None:
    assert_golden(trajectory(tmp_path, losses, step_size, d_steps, max(golden)), golden)


def test_one_step_of_the_engine_is_the_formula_worked_by_hand(tmp_path: Path) -> None:
    h, sigmoid = 0.1, torch.sigmoid
    theta, psi = torch.tensor(1.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    psi = psi - h * sigmoid(psi * theta) * theta  # d/dpsi softplus(psi theta); real is at 0
    theta = theta + h * sigmoid(-psi * theta) * psi  # d/dtheta softplus(-psi theta), the new psi
    assert trajectory(tmp_path, NONSATURATING, h, iterations=1)[0] == pytest.approx(
        (theta.item(), psi.item()), abs=1e-12
    )


@pytest.mark.parametrize(
    ("losses", "step_size", "low", "high"),
    [
        (MINIMAX, 0.2, 1.338, 1.340),
        ("wasserstein = {}", 0.2, 1.397, 1.399),
        (WGAN_GP.format(weight=0.35, target=1), 0.2, 1.25, 1.32),
        (WGAN_GP.format(weight=0.35, target=0), 0.2, 0.0, 1.4e-13),
    ],
    ids=["minimax circles", "wgan circles", "wgan-gp circles", "wgan-gp target 0 converges"],
)
def test_only_the_damped_game_converges(
    tmp_path: Path, losses: str, step_size: float, low: float, high: float
) -> None:
    theta, psi = trajectory(tmp_path, losses, step_size)[-1]
    assert low <= (theta**2 + psi**2) ** 0.5 <= high
