"""The gradient penalty of critics whose slope is known."""

import copy

import pytest
import torch
from ganlab_plugins.gradient_penalty import GradientPenalty
from pydantic import ValidationError
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from ganlab import Schedule


class Linear(nn.Module):
    """D(x) = slope * x[0] + bias, whatever the shape of x."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope, dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, images):
        return self.slope * images.flatten(1)[:, :1] + self.bias


class Square(nn.Module):
    """D(x) = |x|^2 / 2, whose slope at x is |x|."""

    def forward(self, images):
        return images.flatten(1).square().sum(1, keepdim=True) / 2


class ScaledPatches(nn.Module):
    """A patch map: every pixel, times a slope."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, images):
        return self.slope * images


def convolutional(wrap=lambda layer: layer):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 4, 2, 1), nn.Conv2d(6, 6, 3, 1, 1), nn.Conv2d(6, 1, 3)]
    first, second, last = map(wrap, layers)
    return nn.Sequential(first, nn.LeakyReLU(0.2), second, nn.Tanh(), last)


def images(n=3, shape=(3, 11, 9), dtype=torch.float64, seed=0):
    return torch.rand(n, *shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def penalty(discriminator, real, fake, **options):
    result = GradientPenalty(**options).penalty(discriminator=discriminator, real=real, fake=fake)
    assert list(result) == ["D/gradient_penalty"]
    return result["D/gradient_penalty"]


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize(
    ("slope", "options", "expected"),
    [
        (1.0, {}, 0.0),
        (3.0, {}, 40.0),
        (-3.0, {}, 40.0),
        (0.5, {}, 2.5),
        (0.5, {"one_sided": True}, 0.0),
        (3.0, {"one_sided": True}, 40.0),
        (3.0, {"target": 0.0}, 90.0),
        (3.0, {"target": 2.0, "weight": Schedule.constant(1.0)}, 1.0),
    ],
)
def test_penalty_of_a_linear_critic_is_known(n, slope, options, expected):
    value = penalty(Linear(slope), images(n), images(n, seed=1), **options)
    assert value.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "expected"), [({}, 9.0), ({"target": 2.0}, 4.0), ({"one_sided": True}, 9.0)]
)
def test_tf_gans_example_of_d_twice_the_input(options, expected):
    # TF-GAN: D(x) = 2x, four logits for four inputs, summed: |g| = 4, penalty 9
    real, fake = images(2, (4,)), images(2, (4,), seed=1)
    weight = Schedule.constant(1.0)
    value = penalty(ScaledPatches(2.0), real, fake, patch_reduce="sum", weight=weight, **options)
    assert value.item() == pytest.approx(expected)


@pytest.mark.parametrize(("reduce", "slope"), [("mean", 2.0 / 6**0.5), ("sum", 2.0 * 6**0.5)])
def test_a_patch_map_is_reduced_by_mean_or_sum(reduce, slope):
    real, fake = images(2, (1, 2, 3)), images(2, (1, 2, 3), seed=1)
    value = penalty(ScaledPatches(2.0), real, fake, patch_reduce=reduce)
    assert value.item() == pytest.approx(10 * (slope - 1) ** 2)


def test_the_norm_is_over_channels_and_pixels_together():
    # every one of 3 * 4 * 5 values has slope w: norm w * sqrt(60), not w * sqrt(3) per pixel
    class Everything(nn.Module):
        def forward(self, x):
            return 0.5 * x.flatten(1).sum(1, keepdim=True)

    shape = (3, 4, 5)
    value = penalty(Everything(), images(2, shape), images(2, shape, seed=1))
    assert value.item() == pytest.approx(10 * (0.5 * 60**0.5 - 1) ** 2)


def test_the_point_is_one_draw_per_image_between_fake_and_real():
    # real = e, fake = 0: x = u e, so |dD/dx| = u |e|, and it is the same u for all pixels of e
    seen = []

    class Spy(Square):
        def forward(self, x):
            seen.append(torch.func.debug_unwrap(x).detach())
            return super().forward(x)

    real = torch.ones(64, 3, 4, 5, dtype=torch.float64)
    weight = Schedule.constant(1.0)
    value = penalty(Spy(), real, torch.zeros_like(real), target=0.0, weight=weight)
    u = seen[0][:, 0, 0, 0]
    assert torch.equal(seen[0], u[:, None, None, None].expand_as(real))
    assert len(set(u.tolist())) == 64
    assert u.min() >= 0 and u.max() <= 1 and 0.35 < u.mean() < 0.65
    assert value.item() == pytest.approx((u.square() * 60).mean().item())


def test_equal_real_and_fake_images_leave_no_choice_of_the_point():
    real = images()
    expected = 10 * (real.flatten(1).norm(dim=1) - 1).square().mean()
    assert penalty(Square(), real, real).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_a_flat_critic_gives_a_finite_gradient(target):
    critic = convolutional().double()
    for parameter in critic.parameters():
        nn.init.zeros_(parameter)
    value = penalty(critic, images(), images(seed=1), target=target)
    value.backward()
    assert value.item() == pytest.approx(10 * target**2)
    for parameter in critic.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("wrap", [lambda layer: layer, spectral_norm], ids=["plain", "spectral"])
def test_its_gradient_is_that_of_double_backward_in_training_mode(wrap):
    critic = convolutional(wrap).double().train()
    twin = copy.deepcopy(critic)
    real = images()
    penalty(critic, real, real).backward()

    x = real.clone().requires_grad_()
    scores = twin(x).flatten(1).mean(1).sum()
    (gradient,) = torch.autograd.grad(scores, x, create_graph=True)
    (10 * (gradient.flatten(1).norm(dim=1) - 1).square().mean()).backward()
    compared = 0
    for ours, theirs in zip(critic.parameters(), twin.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)
            compared += 1
    assert compared >= 5


def test_its_gradient_is_the_slope_of_its_value():
    critic = convolutional().double()
    real = images(2, (3, 8, 8))
    weight = critic[2].weight
    penalty(critic, real, real).backward()
    change = 1e-6
    with torch.no_grad():
        values = []
        for step in (change, -change):
            weight[0, 0, 1, 1] += step
            values.append(penalty(critic, real, real).item())
            weight[0, 0, 1, 1] -= step
    slope = (values[0] - values[1]) / (2 * change)
    assert weight.grad[0, 0, 1, 1].item() == pytest.approx(slope, rel=1e-5)


def test_nothing_but_the_returned_loss_carries_gradients():
    critic = convolutional().double()
    real, fake = images().requires_grad_(), images(seed=1).requires_grad_()
    value = penalty(critic, real, fake)
    assert all(parameter.grad is None for parameter in critic.parameters())
    value.backward()
    assert real.grad is None and fake.grad is None
    assert all(p.grad is not None for name, p in critic.named_parameters() if "weight" in name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_critic_sees_the_dtype_of_the_images(dtype):
    critic = convolutional().to(dtype)  # a convolution refuses images of another dtype
    value = penalty(critic, images(dtype=dtype), images(dtype=dtype, seed=1))
    assert torch.isfinite(value)


def test_a_one_sided_penalty_with_target_0_is_refused_with_a_remedy():
    with pytest.raises(ValidationError, match="leave one of them out"):
        GradientPenalty(one_sided=True, target=0.0)


def test_it_says_that_it_needs_a_discriminator_without_batch_norm():
    assert GradientPenalty.per_sample
