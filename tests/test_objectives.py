"""Adversarial losses against published vectors, closed forms and their invariances."""

import pytest
import torch
from ganlab_plugins.hinge import Hinge
from ganlab_plugins.lsgan import LSGAN
from ganlab_plugins.relativistic_average import RelativisticAverage
from ganlab_plugins.relativistic_paired import RelativisticPaired
from pydantic import ValidationError

from ganlab import Schedule
from ganlab.assembly import assemble
from ganlab.errors import RecipeError
from ganlab.iteration import iterate
from ganlab.recipe.model import load_recipe

CPU = torch.device("cpu")

# TF-GAN's logits (losses_impl_test.py); its relativistic tests have another first pair
REAL = torch.tensor([[-5.0], [1.4], [12.5], [2.7]], dtype=torch.float64)
RELATIVISTIC_REAL = torch.tensor([[-2.0], [0.4], [12.5], [2.7]], dtype=torch.float64)
FAKE = torch.tensor([[10.0], [4.4], [-5.5], [3.6]], dtype=torch.float64)


def of_d(objective, real, fake, real_label=None, fake_label=None):
    logits = {"real_logits": real, "fake_logits": fake}
    if isinstance(objective, Hinge | RelativisticPaired):
        return objective.discriminator_loss(**logits)
    return objective.discriminator_loss(
        real_label=torch.ones_like(real) if real_label is None else real_label,
        fake_label=torch.zeros_like(fake) if fake_label is None else fake_label,
        **logits,
    )


def of_g(objective, real, fake):
    logits = {"fake_logits": fake}
    if isinstance(objective, RelativisticAverage | RelativisticPaired):
        logits["real_logits"] = real
    losses = objective.generator_loss(**logits)
    assert list(losses) == ["G/adversarial"]
    return losses["G/adversarial"]


def leaf(values):
    return values.clone().requires_grad_()


@pytest.mark.parametrize(
    ("objective", "real", "d", "g"),
    [
        (LSGAN(), REAL, 41.73375, 17.69625),
        (LSGAN(halved=False), REAL, 83.4675, 35.3925),
        (Hinge(), REAL, 6.75, -3.125),
        (RelativisticPaired(), REAL, 4.822435, 4.597435),
        (RelativisticPaired(), RELATIVISTIC_REAL, 4.314827, 4.589828),
        (RelativisticAverage(), RELATIVISTIC_REAL, 4.390114, 4.940114),
        (RelativisticAverage(halved=True), RELATIVISTIC_REAL, 2.195057, 2.470057),
        (RelativisticAverage(detach_means=True), RELATIVISTIC_REAL, 4.390114, 4.940114),
    ],
    ids=[
        "lsgan",
        "lsgan of BasicSR",
        "hinge",
        "rpgan",
        "rpgan 2",
        "ragan",
        "ragan halved",
        "ragan detached",
    ],
)
def test_the_losses_on_tf_gans_logits_are_the_published_ones(objective, real, d, g):
    assert of_d(objective, real, FAKE).item() == pytest.approx(d, abs=1.5e-6)
    assert of_g(objective, real, FAKE).item() == pytest.approx(g, abs=1.5e-6)


def test_least_squares_pull_to_the_targets_of_choice():
    objective = LSGAN(real_target=2.0, fake_target=-1.0, generator_target=0.5, halved=False)
    real, fake = torch.tensor([[1.0], [2.0]]), torch.tensor([[-1.0], [2.0]])
    assert of_d(objective, real, fake).item() == (1 + 0) / 2 + (0 + 9) / 2
    assert of_g(objective, real, fake).item() == (2.25 + 2.25) / 2


def test_a_label_lies_between_the_targets_of_least_squares():
    # the label 0.9 asks for a + 0.9 (b - a): 1.7 between -1 and 2, where the loss is least
    real, fake = leaf(torch.tensor([[1.7]])), leaf(torch.tensor([[-1.0]]))
    objective = LSGAN(real_target=2.0, fake_target=-1.0)
    loss = of_d(objective, real, fake, torch.tensor([[0.9]]))
    assert loss.item() == pytest.approx(0, abs=1e-12)
    plain = LSGAN(halved=False)
    assert of_d(plain, real, fake, torch.tensor([[0.7]])).item() == pytest.approx(1 + 1)


def test_equal_targets_of_least_squares_are_refused_with_a_remedy():
    with pytest.raises(ValidationError, match="cannot tell real from fake; change one"):
        LSGAN(real_target=0.0)


def test_relativistic_least_squares_aim_at_plus_and_minus_one():
    # r' = r - mean f, f' = f - mean r; real (1, 3), fake (0, 4): r' = (-1, 1), f' = (-2, 2)
    real, fake = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [4.0]])
    objective = RelativisticAverage(base="lsgan")
    assert of_d(objective, real, fake).item() == (4 + 0) / 2 + (1 + 9) / 2
    assert of_g(objective, real, fake).item() == (0 + 4) / 2 + (9 + 1) / 2


def test_relativistic_hinge_by_hand():
    real, fake = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [4.0]])
    objective = RelativisticAverage(base="hinge")
    assert of_d(objective, real, fake).item() == (2 + 0) / 2 + (0 + 3) / 2
    assert of_g(objective, real, fake).item() == (0 + 2) / 2 + (3 + 0) / 2


@pytest.mark.parametrize("base", ["bce", "lsgan", "hinge"])
def test_the_relativistic_generator_plays_the_discriminator_with_the_sides_exchanged(base):
    objective = RelativisticAverage(base=base)
    assert of_g(objective, REAL, FAKE).item() == pytest.approx(of_d(objective, FAKE, REAL).item())


ALL = [
    LSGAN(),
    Hinge(),
    RelativisticPaired(),
    *(RelativisticAverage(base=base) for base in ("bce", "lsgan", "hinge")),
    RelativisticAverage(mean_over="batch"),
    RelativisticAverage(detach_means=True),
]
IDS = [f"{i}-{objective.name}" for i, objective in enumerate(ALL)]


@pytest.mark.parametrize("objective", ALL[2:], ids=IDS[2:])
def test_what_is_relative_ignores_a_constant_on_all_logits(objective):
    for loss in (of_d, of_g):
        shifted = loss(objective, REAL + 3.7, FAKE + 3.7)
        assert shifted.item() == pytest.approx(loss(objective, REAL, FAKE).item(), abs=1e-12)


@pytest.mark.parametrize("objective", [o for o in ALL if getattr(o, "mean_over", "") != "batch"])
def test_a_patch_map_counts_as_its_flattened_logits(objective):
    real, fake = torch.randn(2, 3, 1, 5, 4, dtype=torch.float64).unbind()
    for loss in (of_d, of_g):
        flat = loss(objective, real.reshape(-1, 1), fake.reshape(-1, 1))
        assert loss(objective, real, fake).item() == pytest.approx(flat.item(), abs=1e-12)


def test_the_mean_over_the_batch_is_apart_for_each_position_of_the_map():
    real, fake = torch.randn(2, 3, 1, 2, 2, dtype=torch.float64).unbind()
    apart = RelativisticAverage(mean_over="batch")
    for loss in (of_d, of_g):
        alone = [
            loss(apart, real[..., i, j], fake[..., i, j]).item() for i in range(2) for j in range(2)
        ]
        assert loss(apart, real, fake).item() == pytest.approx(sum(alone) / 4)
        assert loss(apart, real, fake).item() != pytest.approx(
            loss(RelativisticAverage(), real, fake).item()
        )
        assert loss(apart, REAL, FAKE) == loss(RelativisticAverage(), REAL, FAKE)


@pytest.mark.parametrize("objective", ALL, ids=IDS)
def test_only_the_paired_loss_depends_on_which_fake_stands_beside_which_real(objective):
    permuted = FAKE[[2, 0, 3, 1]]
    same = of_d(objective, REAL, permuted).item() == pytest.approx(
        of_d(objective, REAL, FAKE).item()
    )
    assert same == (not isinstance(objective, RelativisticPaired))


@pytest.mark.parametrize("n", [1, 2])
def test_two_sides_that_look_alike_give_ln_2(n):
    logits = torch.zeros(n, 1, dtype=torch.float64)
    ln2 = pytest.approx(0.6931471805599453)
    assert of_d(RelativisticPaired(), logits, logits).item() == ln2
    assert of_g(RelativisticPaired(), logits, logits).item() == ln2
    assert of_d(RelativisticAverage(halved=True), logits, logits).item() == ln2


# d/dr of the halved loss of D, measured on TF-GAN's second vector
EXACT = [-0.1955, -0.1886, -0.0713, -0.1468]
DETACHED = [-0.1243, -0.1173, -1e-5, -0.0756]


@pytest.mark.parametrize(
    ("detach_means", "gradient"), [(False, EXACT), (True, DETACHED)], ids=["exact", "detached"]
)
def test_trap_detached_means_are_not_the_gradient_of_the_loss(detach_means, gradient):
    objective = RelativisticAverage(halved=True, detach_means=detach_means)
    real = leaf(RELATIVISTIC_REAL)
    of_d(objective, real, FAKE).backward()
    assert real.grad.flatten().tolist() == pytest.approx(gradient, abs=6e-5)


def test_the_exact_gradient_is_that_of_finite_differences():
    objective = RelativisticAverage()
    real, fake = leaf(RELATIVISTIC_REAL), leaf(FAKE)
    assert torch.autograd.gradcheck(lambda r, f: of_d(objective, r, f), (real, fake))
    assert torch.autograd.gradcheck(lambda r, f: of_g(objective, r, f), (real, fake))


def test_the_generators_real_term_moves_the_mean_of_the_fakes():
    # G's gradient has the term of the reals through mean(f); detach_means does not touch G
    fakes = [leaf(FAKE), leaf(FAKE)]
    for fake, detach in zip(fakes, (False, True), strict=True):
        of_g(RelativisticAverage(detach_means=detach), RELATIVISTIC_REAL, fake).backward()
    assert torch.equal(fakes[0].grad, fakes[1].grad)
    real = RELATIVISTIC_REAL - FAKE.mean()
    own = -torch.sigmoid(-(FAKE - RELATIVISTIC_REAL.mean())) / 4
    expected = own - torch.sigmoid(real).mean() / 4
    torch.testing.assert_close(fakes[0].grad, expected)


def test_hinge_learns_nothing_beyond_the_margin():
    real, fake = leaf(torch.tensor([[1.5], [0.5]])), leaf(torch.tensor([[-1.5], [-0.5]]))
    of_d(Hinge(), real, fake).backward()
    assert real.grad.flatten().tolist() == [0, -0.5]
    assert fake.grad.flatten().tolist() == [0, 0.5]


@pytest.mark.parametrize("kind", [LSGAN, Hinge, RelativisticPaired, RelativisticAverage])
def test_the_weight_is_the_generators_alone(kind):
    plain, heavy = kind(), kind(weight=Schedule.constant(0.005))
    assert of_d(heavy, REAL, FAKE) == of_d(plain, REAL, FAKE)
    ratio = of_g(heavy, REAL, FAKE) / of_g(plain, REAL, FAKE)
    assert ratio.item() == pytest.approx(0.005)


def test_relativistic_cross_entropy_honours_labels():
    real_label = torch.full_like(REAL, 0.9)
    difference = of_d(RelativisticAverage(), REAL, FAKE, real_label) - of_d(
        RelativisticAverage(), REAL, FAKE
    )
    # bce(x, l) = bce(x, 1) + (1 - l) x
    expected = 0.1 * (REAL.mean() - FAKE.mean())
    assert difference.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("logits", [1e4, -1e4])
@pytest.mark.parametrize("objective", ALL, ids=IDS)
def test_extreme_logits_stay_finite(objective, logits):
    real, fake = leaf(torch.tensor([[logits]])), leaf(torch.tensor([[-logits]]))
    loss = of_d(objective, real, fake) + of_g(objective, real, fake)
    loss.backward()
    assert loss.isfinite() and real.grad.isfinite().all() and fake.grad.isfinite().all()


def with_objective(tiny, objective):
    text = tiny.read_text().replace("wasserstein = {}", objective)
    tiny.write_text(text)
    return tiny


@pytest.mark.parametrize(
    "objective",
    ["lsgan = {}", "hinge = {}", "relativistic_paired = {}", "relativistic_average = {}"],
)
def test_it_trains_through_the_engine(tiny, objective):
    run = assemble(load_recipe(with_objective(tiny, objective)), CPU)
    assert run.reads_real_logits == objective.startswith("relativistic")
    losses = iterate(run)
    assert {"D/adversarial", "G/adversarial"} <= losses.keys()
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize(
    "objective",
    ["hinge = {}", "relativistic_paired = {}", "relativistic_average = { base = 'hinge' }"],
)
def test_an_objective_without_labels_refuses_what_changes_labels(tiny, objective):
    file = with_objective(tiny, objective + "\nlabel_smoothing = {}")
    with pytest.raises(RecipeError, match="label_smoothing"):
        assemble(load_recipe(file), CPU)


def test_trap_an_unknown_option_is_an_error_and_not_a_silent_default():
    for kind in (LSGAN, Hinge, RelativisticPaired, RelativisticAverage):
        with pytest.raises(ValidationError, match="gp_loss_weight"):
            kind(gp_loss_weight=50.0)
