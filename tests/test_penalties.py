"""Penalties on discriminators whose slope, weights or logits are known."""

import inspect

import pytest
import torch
from ganlab_plugins.approximate_r1 import ApproximateR1
from ganlab_plugins.approximate_r2 import ApproximateR2
from ganlab_plugins.dragan import DRAGAN
from ganlab_plugins.r1 import R1
from ganlab_plugins.r2 import R2
from pydantic import ValidationError
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from ganlab import Schedule
from ganlab.assembly import assemble
from ganlab.errors import RecipeError
from ganlab.iteration import iterate
from ganlab.recipe.model import load_recipe

CPU = torch.device("cpu")
NO_PENALTY = "gradient_penalty=false"


class Linear(nn.Module):
    """D(x) = w . x + 0.3 for images of any shape, w given once for every value."""

    def __init__(self, w: torch.Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w.double().flatten())

    def forward(self, images):
        return images.flatten(1) @ self.w[:, None] + 0.3


class Square(nn.Module):
    """D(x) = s |x|^2 / 2, whose slope at x is s |x|."""

    def __init__(self) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, images):
        return self.s * images.flatten(1).square().sum(1, keepdim=True) / 2


class Pixels(nn.Module):
    """A patch map: every pixel, times 2."""

    def forward(self, images):
        return 2 * images


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(6, 6, 3, 1, 1), nn.Tanh(),
        nn.Conv2d(6, 1, 3),
    ).double()  # fmt: skip


def images(n=3, shape=(3, 11, 9), seed=0):
    return torch.rand(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def penalty(plugin, discriminator, real, fake):
    arguments = {"discriminator": discriminator, "real": real, "fake": fake}
    names = inspect.signature(plugin.penalty).parameters
    torch.manual_seed(0)
    result = plugin.penalty(**{name: arguments[name] for name in names})
    assert list(result) == [f"D/{plugin.name}"]
    return result[f"D/{plugin.name}"]


def one(value=1.0):
    return Schedule.constant(value)


SLOPES = [R1, R2, DRAGAN, ApproximateR1, ApproximateR2]
NAMES = ["r1", "r2", "dragan", "approximate_r1", "approximate_r2"]


# --- r1, r2 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [R1, R2])
@pytest.mark.parametrize(("n", "gamma"), [(1, 10.0), (3, 0.3)])
def test_of_a_linear_critic_it_is_half_of_gamma_times_the_squared_slope(kind, n, gamma):
    w = torch.randn(3, 11, 9, generator=torch.Generator().manual_seed(1))
    value = penalty(kind(weight=one(gamma)), Linear(w), images(n), images(n, seed=1))
    assert value.item() == pytest.approx(gamma / 2 * w.double().square().sum().item())


@pytest.mark.parametrize(("kind", "side"), [(R1, 0), (R2, 1)])
def test_r1_looks_at_the_real_images_and_r2_at_the_generated_ones(kind, side):
    sides = images(), images(seed=1)
    expected = 5 * sides[side].flatten(1).square().sum(1).mean()
    assert penalty(kind(), Square(), *sides).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("kind", [R1, R2])
@pytest.mark.parametrize(("reduce", "squared"), [("mean", 4 / 6), ("sum", 4 * 6)])
def test_the_sum_over_a_map_is_h_w_squared_times_its_mean(kind, reduce, squared):
    x = images(2, (1, 2, 3))
    value = penalty(kind(weight=one(), patch_reduce=reduce), Pixels(), x, x)
    assert value.item() == pytest.approx(squared / 2)


@pytest.mark.parametrize("kind", SLOPES)
def test_trap_a_flat_critic_gives_a_finite_gradient(kind):
    critic = convolutional()
    for parameter in critic.parameters():
        nn.init.zeros_(parameter)
    value = penalty(kind(), critic, images(), images(seed=1))
    value.backward()
    assert value.item() == (10 if kind is DRAGAN else 0)
    assert all(p.grad is None or p.grad.isfinite().all() for p in critic.parameters())


@pytest.mark.parametrize("kind", SLOPES)
def test_its_gradient_is_that_of_finite_differences(kind):
    critic, (real, fake) = convolutional(), (images(), images(seed=1))
    penalty(kind(), critic, real, fake).backward()
    weight, change, values = critic[2].weight, 1e-6, []
    with torch.no_grad():
        for step in (change, -change):
            weight[0, 0, 1, 1] += step
            values.append(penalty(kind(), critic, real, fake).item())
            weight[0, 0, 1, 1] -= step
    slope = (values[0] - values[1]) / (2 * change)
    assert weight.grad[0, 0, 1, 1].item() == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("kind", SLOPES)
def test_trap_its_gradient_reaches_the_discriminator_alone(kind):
    critic, real, fake = convolutional(), images().requires_grad_(), images().requires_grad_()
    penalty(kind(), critic, real, fake).backward()
    assert real.grad is None and fake.grad is None
    assert all(p.grad is not None for name, p in critic.named_parameters() if "weight" in name)


def test_gamma_may_fall_as_in_r3gan(tiny):
    tiny.write_text(
        tiny.read_text() + "r1 = { weight = { from = 2.0, to = 0.2, over = 10, shape = 'cosine' } }"
    )
    run = assemble(load_recipe(tiny, [NO_PENALTY]), CPU)
    real = batch_of(run).real
    at = []
    for iteration in (0, 10, 20):
        run.recipe.plugins["r1"].advance(iteration)
        at.append(run.hook.penalty(
            discriminator=run.D, real=real, fake=real, condition=None, real_logits=None,
            fake_logits=None,
        )[0]["D/r1"])  # fmt: skip
    assert (at[1] / at[0]).item() == pytest.approx(0.1)
    assert at[2] == at[1]


def batch_of(run):
    return run.hook.sample_batch(batch_size=2, device=CPU)


@pytest.mark.parametrize("name", NAMES)
def test_trap_batch_norm_beside_a_per_sample_penalty_is_refused(tiny, name):
    tiny.write_text(tiny.read_text() + f"{name} = {{}}\n")
    recipe = load_recipe(tiny, [NO_PENALTY, 'patch_discriminator.norm = "batch"'])
    with pytest.raises(RecipeError, match=rf'{name} needs .* without batch norm.*norm = "none"'):
        assemble(recipe, CPU)


def test_trap_an_unknown_option_is_an_error_and_not_a_silent_default():
    for kind in SLOPES:
        with pytest.raises(ValidationError, match="gp_loss_weight"):
            kind(gp_loss_weight=50.0)


# --- dragan, approximate r1 and r2 ---------------------------------------------------------------


@pytest.mark.parametrize("noise", ["upward", "centred"])
@pytest.mark.parametrize(("norm", "target", "expected"), [(1, 1, 0), (3, 1, 40), (3, 0, 90)])
def test_dragan_of_a_linear_critic_is_known_wherever_it_looks(noise, norm, target, expected):
    w = torch.full((3, 11, 9), norm / 297**0.5)
    value = penalty(DRAGAN(noise=noise, target=float(target)), Linear(w), images(1), None)
    assert value.item() == pytest.approx(expected, abs=1e-5)


def test_dragan_disturbs_upwards_by_up_to_half_a_deviation_one_u_an_image():
    real = images(64, (3, 8, 7))
    torch.manual_seed(0)
    z, u = (torch.rand(s, dtype=torch.float64) for s in (real.shape, (64, 1, 1, 1)))
    torch.manual_seed(0)
    moved = (DRAGAN().disturbed(real) - real) / (real.std(correction=0) / 2)
    torch.testing.assert_close(moved, u * z)
    assert moved.min() >= 0 and moved.max() <= 1
    assert moved.mean() == pytest.approx(0.25, abs=0.02)


def test_dragan_of_compare_gan_disturbs_either_way_and_stays_in_range():
    real = images(8, seed=1)  # not the numbers that the plugin draws
    point = DRAGAN(noise="centred").disturbed(real)
    assert point.min() >= 0 and point.max() <= 1
    inside = (point > 0) & (point < 1)
    moved = ((point - real) / real.std(correction=0))[inside]
    assert -0.5 <= moved.min() < -0.45 and 0.45 < moved.max() <= 0.5


def test_dragan_asks_only_at_real_images():
    assert DRAGAN(target=0.0).disturbed(torch.ones(1, 3, 4, 4)).equal(torch.ones(1, 3, 4, 4))
    x = torch.full((2, 3, 4, 4), 0.5, dtype=torch.float64)  # no deviation, so x' = x
    value = penalty(DRAGAN(target=0.0), Square(), x, None)
    assert value.item() == pytest.approx(10 * 48 / 4)


@pytest.mark.parametrize("kind", [ApproximateR1, ApproximateR2])
def test_the_approximation_of_a_linear_critic_is_the_noise_along_its_slope(kind):
    w, x = torch.randn(3, 11, 9), images(4)
    torch.manual_seed(0)
    n = torch.randn(x.shape, dtype=torch.float64).flatten(1)
    expected = 100 * (0.01 * n @ w.double().flatten()).square().mean()
    assert penalty(kind(), Linear(w), x, x).item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize(("kind", "exact"), [(ApproximateR1, R1), (ApproximateR2, R2)])
def test_in_expectation_it_is_r1_with_a_gamma_of_two_lambda_sigma_squared(kind, exact):
    critic = convolutional()
    real, fake = images(1), images(1, seed=1)
    many = [x.expand(4000, -1, -1, -1) for x in (real, fake)]
    gamma = one(2 * 100 * 0.01**2)
    expected = penalty(exact(weight=gamma), critic, real, fake)
    # of 4000 squares of a normal variable the mean deviates by sqrt(2 / 4000) = 2 %
    assert penalty(kind(), critic, *many).item() == pytest.approx(expected.item(), rel=0.08)


@pytest.mark.parametrize(("kind", "side"), [(ApproximateR1, 0), (ApproximateR2, 1)])
def test_the_approximation_looks_at_its_own_side(kind, side):
    sides = [torch.zeros(500, 1, 2, 2).double(), torch.zeros(500, 1, 2, 2).double()]
    sides[side] += 3.0  # Square is flat at 0
    assert penalty(kind(), Square(), *sides).item() == pytest.approx(0.01 * 36, rel=0.3)
    assert penalty(kind(), Square(), *reversed(sides)).item() < 1e-4


@pytest.mark.parametrize("kind", [ApproximateR1, ApproximateR2])
@pytest.mark.parametrize(("reduce", "slope"), [("mean", 2 / 6), ("sum", 2.0)])
def test_the_approximation_reduces_a_map_as_r1_does(kind, reduce, slope):
    x = images(2, (1, 2, 3))
    torch.manual_seed(0)
    n = torch.randn(x.shape, dtype=torch.float64).flatten(1)
    expected = 100 * (0.01 * slope * n.sum(1)).square().mean()
    value = penalty(kind(patch_reduce=reduce), Pixels(), x, x)
    assert value.item() == pytest.approx(expected.item())


def test_trap_two_calls_of_a_spectrally_normed_critic_are_two_critics():
    # with noise of 0 the term must be 0, though D takes a power iteration at every call
    torch.manual_seed(3)
    critic = nn.Sequential(nn.Flatten(), spectral_norm(nn.Linear(297, 5)), nn.Linear(5, 1)).double()
    with torch.no_grad():
        critic[1].parametrizations.weight.original.normal_()  # sigma is now out of date
    x = images()
    assert critic(x).sum().item() != critic(x).sum().item()
    with torch.no_grad():
        critic[1].parametrizations.weight.original.normal_()
    assert penalty(ApproximateR1(sigma=1e-300), critic, x, x).item() < 1e-20


# --- weight clipping -----------------------------------------------------------------------------


def test_every_parameter_is_in_the_box_after_every_update_and_not_before(tiny):
    tiny.write_text(tiny.read_text() + "weight_clipping = { limit = 0.02 }\n")
    run = assemble(load_recipe(tiny, [NO_PENALTY]), CPU)
    before = [p.detach().clone() for p in run.D.parameters()]
    assert max(p.abs().max() for p in before) > 0.02
    run.hook.discriminator_step(run=run, batch=batch_of(run))
    after = list(run.D.parameters())
    assert max(p.abs().max() for p in after).item() == pytest.approx(0.02)
    moved = [p for p, q in zip(after, before, strict=True) if not torch.equal(p, q)]
    assert len(moved) == len(after)
    assert iterate(run).keys() >= {"D/adversarial", "G/adversarial"}


def test_clipping_comes_after_the_step_of_a_lazy_penalty_and_not_when_d_rests(tiny, tmp_path):
    # a lazy term that pushes weights up by the whole learning rate after D's own step
    (tmp_path / "push.py").write_text(
        "from ganlab import LazyPenalty\n\n\nclass Push(LazyPenalty):\n"
        "    def term(self, discriminator, real, fake):\n"
        "        return -sum(p.sum() for p in discriminator.parameters())\n"
    )
    extra = 'push = { use = "./push.py", every = 2 }\nweight_clipping = {}\n'
    for text in (extra, "\n".join(reversed(extra.splitlines())) + "\n"):
        file = tmp_path / "clipped.toml"
        file.write_text(tiny.read_text() + text + "pretraining = { iterations = 1 }\n")
        run = assemble(load_recipe(file, [NO_PENALTY, "adam={ learning_rate = 0.1 }"]), CPU)
        before = [p.detach().clone() for p in run.D.parameters()]
        iterate(run)
        assert all(torch.equal(p, q) for p, q in zip(run.D.parameters(), before, strict=True))
        run.iteration = 1
        iterate(run)
        assert max(p.abs().max() for p in run.D.parameters()).item() == pytest.approx(0.01)


@pytest.mark.parametrize("other", ["gradient_penalty", *NAMES, "spectral_norm"])
def test_clipping_beside_another_bound_of_the_slope_is_refused_with_a_remedy(tiny, other):
    extra = "" if other == "gradient_penalty" else f"{other} = {{}}\n"
    tiny.write_text(tiny.read_text() + extra + "weight_clipping = {}\n")
    overrides = [] if other == "gradient_penalty" else [NO_PENALTY]
    with pytest.raises(RecipeError, match=f"bounded twice, by weight_clipping and by {other}"):
        assemble(load_recipe(tiny, overrides), CPU)


@pytest.mark.parametrize("kind", [ApproximateR1, ApproximateR2])
def test_a_penalty_by_difference_asks_the_discriminator_in_full_float32(kind):
    class Asked(Pixels):
        def forward(self, images):
            allowed.append(torch.backends.cudnn.allow_tf32)
            return super().forward(images)

    allowed = []
    assert torch.backends.cudnn.allow_tf32
    penalty(kind(), Asked(), images(), images())
    assert allowed == [False] and torch.backends.cudnn.allow_tf32


@pytest.mark.cuda
@pytest.mark.parametrize("kind", [ApproximateR1, ApproximateR2])
def test_a_gpu_finds_the_gradient_of_a_penalty_by_difference(kind):
    gradients = []
    for device, dtype in (("cuda", torch.float32), ("cuda", torch.float64)):
        D = convolutional().to(device, dtype)
        x = images(8, (3, 32, 32)).to(device, dtype)
        noise = kind(sigma=0.01, weight=one(100.0))
        with torch.random.fork_rng(devices=["cuda"]):
            torch.cuda.manual_seed(0)
            drawn = torch.randn(x.shape, device=device, dtype=torch.float32).to(dtype)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn", lambda *_, drawn=drawn, **__: drawn)
            penalty(noise, D, x, x).backward()
        gradients.append(torch.cat([p.grad.double().flatten() for p in D.parameters()]))
    assert (gradients[0] - gradients[1]).norm() < 0.02 * gradients[1].norm()
