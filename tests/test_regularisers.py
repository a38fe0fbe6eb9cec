"""Spectral norm, orthogonality, consistency and LeCam, each against its formula."""

import copy
from types import SimpleNamespace

import pytest
import torch
from ganlab_plugins.consistency import Consistency
from ganlab_plugins.lecam import Lecam
from ganlab_plugins.orthogonal import Orthogonal
from ganlab_plugins.spectral_norm import SpectralNorm
from pydantic import ValidationError
from torch import nn
from torch.nn import utils
from torch.nn.utils import parametrizations, parametrize

from ganlab import Schedule
from ganlab.assembly import assemble
from ganlab.errors import RecipeError
from ganlab.iteration import iterate
from ganlab.recipe.model import load_recipe

CPU = torch.device("cpu")
# TF-GAN's logits (losses_impl_test.py)
REAL = torch.tensor([[-5.0], [1.4], [12.5], [2.7]], dtype=torch.float64)
FAKE = torch.tensor([[10.0], [4.4], [-5.5], [3.6]], dtype=torch.float64)


def one(value=1.0):
    return Schedule.constant(value)


def images(n=3, shape=(3, 16, 11), seed=0):
    return torch.rand(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def build(file, text, *overrides):
    file.write_text(file.read_text() + text)
    return assemble(load_recipe(file, overrides), CPU)


# --- spectral_norm -------------------------------------------------------------------------------


def normed(network, **options):
    wrapper = SpectralNorm(**options).make_discriminator()
    next(wrapper)
    with pytest.raises(StopIteration) as stop:
        wrapper.send([network])
    (made,) = stop.value.value
    return made


def layers(network):
    return [m for m in network.modules() if isinstance(m, nn.modules.conv._ConvNd | nn.Linear)]


def test_the_largest_singular_value_of_every_layer_is_one():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv1d(4, 5, 2), nn.ConvTranspose2d(4, 6, 3), nn.Linear(7, 5)
    ).double()
    made = normed(network, num_power_iterations=50)
    for layer in layers(made):
        weight = layer.weight
        if isinstance(layer, nn.ConvTranspose2d):  # its first dimension counts the inputs
            weight = weight.transpose(0, 1)
        assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-6)


def test_the_initial_weights_stay_under_the_norm_and_biases_as_they_are(tiny):
    plain = build(tiny, "").D
    made = build(tiny, "spectral_norm = {}\n").D
    for one_layer, other in zip(layers(plain), layers(made), strict=True):
        assert torch.equal(one_layer.weight, other.parametrizations.weight.original)
        assert torch.equal(one_layer.bias, other.bias)
        assert not torch.equal(one_layer.weight, other.weight)


def test_first_and_last_layer_may_stay_plain():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 1, 3))
    made = normed(network, first_and_last=False)
    assert [parametrize.is_parametrized(layer) for layer in made] == [False, True, False]
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 1, 3))
    assert all(parametrize.is_parametrized(layer) for layer in normed(network))


@pytest.mark.parametrize("options", [{"first_and_last": False}, {}])
def test_nothing_to_normalise_is_refused(options):
    network = nn.Sequential(nn.Linear(3, 1)) if options else nn.Sequential(nn.ReLU())
    wrapper = SpectralNorm(**options).make_discriminator()
    next(wrapper)
    with pytest.raises(RecipeError, match="nothing to normalise"):
        wrapper.send([network])


@pytest.mark.parametrize(
    "norm", [parametrizations.spectral_norm, parametrizations.weight_norm, utils.spectral_norm]
)
def test_a_layer_with_a_norm_of_its_weights_is_refused(norm):
    wrapper = SpectralNorm().make_discriminator()
    next(wrapper)
    with pytest.raises(RecipeError, match=r'layer 1 .*already; set its norm = "none"'):
        wrapper.send([nn.Sequential(nn.ReLU(), norm(nn.Linear(4, 4)))])


def test_every_one_of_several_discriminators_is_normed_and_trains_with_a_penalty(tiny):
    text = (
        'other = { use = "patch_discriminator", width = 3, num_layers = 1 }\nspectral_norm = {}\n'
    )
    run = build(tiny, text, "num_discriminators=2")
    assert all(parametrize.is_parametrized(layer) for layer in layers(run.D))
    weights = [layer.parametrizations.weight.original for layer in layers(run.D)]
    before = [weight.detach().clone() for weight in weights]
    assert len(weights) == 6
    assert iterate(run)["D/gradient_penalty"].isfinite()
    assert not any(map(torch.equal, weights, before))


# --- orthogonal ----------------------------------------------------------------------------------


def test_its_gradient_is_the_one_that_biggans_code_adds():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(5, 4)).double()
    plugin = Orthogonal(weight=one(0.3))
    plugin.penalty(discriminator=network)["D/orthogonal"].backward()
    for layer in (network[0], network[2]):
        weight = layer.weight.detach().flatten(1)
        overlaps = weight @ weight.T * (1 - torch.eye(len(weight)))
        expected = 0.3 * 2 * overlaps @ weight
        torch.testing.assert_close(layer.weight.grad.flatten(1), expected)
        assert layer.bias.grad is None
    assert network[1].weight.grad is None  # of one dimension


def test_filters_at_right_angles_cost_nothing_whatever_their_length():
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 0.1]]))
    plugin = Orthogonal(weight=one(1.0))
    assert plugin.penalty(discriminator=layer)["D/orthogonal"].item() == 0
    with torch.no_grad():  # overlap 2 * 3 on both sides of the diagonal
        layer.weight.copy_(torch.tensor([[3.0, 0.0], [2.0, 1.0]]))
    assert plugin.penalty(discriminator=layer)["D/orthogonal"].item() == pytest.approx(36.0)


def test_a_discriminator_without_matrices_is_refused():
    with pytest.raises(RecipeError, match="no weight matrix"):
        Orthogonal().penalty(discriminator=nn.BatchNorm2d(3))


# --- consistency ---------------------------------------------------------------------------------


class First(nn.Module):
    """A map whose every value is the image's first pixel, times w."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x):
        return self.w * x[:, :1, :1, :1].expand(-1, 1, 2, 3)


def gap(discriminator, x, y, **options):
    torch.manual_seed(0)
    plugin = Consistency(**{name: one(value) for name, value in options.items()})
    return plugin.penalty(discriminator=discriminator, real=x, fake=y)["D/consistency"]


def test_every_image_is_mirrored_or_not_and_shifted_by_at_most_an_eighth():
    height, width = 16, 24
    numbered = torch.arange(height * width, dtype=torch.float64).reshape(1, 1, height, width)
    torch.manual_seed(0)
    moved = Consistency().moved(numbered.expand(400, 3, -1, -1))
    assert moved.shape == (400, 3, height, width)
    assert torch.equal(moved[:, 0], moved[:, 2])  # one draw for all channels
    seen = set()
    for image in moved[:, 0]:
        # far from the border a row and a column have gone together
        row, column = divmod(int(image[8, 12]), width)
        mirrored = bool(image[8, 13] < image[8, 12])
        seen.add((row - 8, (width - 1 - column if mirrored else column) - 12, mirrored))
    assert {down for down, _, _ in seen} == set(range(-2, 3))
    assert {right for _, right, _ in seen} == set(range(-3, 4))
    assert len(seen) > 65  # of 5 * 7 * 2


def test_the_border_is_reflected_without_repeating_its_pixel():
    torch.manual_seed(0)
    row = torch.arange(8.0).expand(200, 1, 8, 8)
    moved = Consistency(shift=0.25).moved(row)[:, 0, 0].tolist()
    assert [2, 1, 0, 1, 2, 3, 4, 5] in moved
    assert [2, 3, 4, 5, 6, 7, 6, 5] in moved
    assert [5, 4, 3, 2, 1, 0, 1, 2] in moved


def test_without_a_shift_an_image_is_itself_or_its_mirror_image():
    x = images(64)
    torch.manual_seed(0)
    moved = Consistency(shift=0.0).moved(x)
    mirrored = torch.tensor([torch.equal(a, b.flip(2)) for a, b in zip(moved, x, strict=True)])
    plain = torch.tensor([torch.equal(a, b) for a, b in zip(moved, x, strict=True)])
    assert torch.equal(mirrored, ~plain)
    assert 20 < mirrored.sum() < 44


@pytest.mark.parametrize("n", [1, 5])
def test_the_terms_are_the_mean_squared_gaps_of_each_side(n):
    real, fake = images(n), images(n, seed=1)
    torch.manual_seed(0)
    plugin = Consistency()
    gaps = [(x - plugin.moved(x))[:, 0, 0, 0].square().mean() for x in (real, fake)]
    assert gap(First(), real, fake).item() == pytest.approx(10 * gaps[0].item())
    both = gap(First(), real, fake, real=10.0, fake=4.0)
    assert both.item() == pytest.approx((10 * gaps[0] + 4 * gaps[1]).item())


def test_a_critic_that_looks_at_nothing_that_moves_is_not_punished():
    class Total(nn.Module):  # the sum of an image is that of its mirror image
        def forward(self, x):
            return x.flatten(1).sum(1, keepdim=True)

    plugin = Consistency(shift=0.0)
    value = plugin.penalty(discriminator=Total(), real=images(8), fake=None)["D/consistency"]
    assert value.item() < 1e-20


def test_the_consistency_reaches_the_discriminator_alone():
    critic, real, fake = First(), images().requires_grad_(), images().requires_grad_()
    gap(critic, real, fake, real=1.0, fake=1.0).backward()
    assert critic.w.grad.item() > 0
    assert real.grad is None and fake.grad is None


def test_consistency_of_neither_side_is_refused():
    with pytest.raises(ValidationError, match="both 0, so it does nothing"):
        Consistency(real=one(0.0))


# --- lecam ---------------------------------------------------------------------------------------


def lecam(means=None, active=True, **options):
    """The plugin with D's running means set, and the D that it knows."""
    plugin, critic = Lecam(**options), nn.Linear(1, 1)
    plugin.run_start(run=SimpleNamespace(D=critic, device=CPU, dtype=torch.float64))
    state = plugin.state_dict() | {"num_steps": plugin.start if active else plugin.start - 1}
    if means:
        state["means"] = [torch.tensor(means, dtype=torch.float64)]
    plugin.load_state_dict(state)
    return plugin, critic


def answer(plugin, critic, real=REAL, fake=FAKE):
    return plugin.penalty(discriminator=critic, real_logits=real, fake_logits=fake)["D/lecam"]


def means_of(plugin):
    (means,) = plugin.state_dict()["means"]
    return means.tolist()


def test_the_golden_value_at_running_means_of_plus_and_minus_a_half():
    # a decay this close to 1 leaves the running means where they are
    plugin, critic = lecam([0.5, -0.5], decay=1 - 1e-15, weight=one())
    assert answer(plugin, critic).item() == pytest.approx(54.7125, abs=1e-5)
    assert means_of(plugin) == pytest.approx([0.5, -0.5])


def test_the_running_means_move_before_they_are_used():
    plugin, critic = lecam([0.5, -0.5], decay=0.9, weight=one(2.0))
    real_mean, fake_mean = 0.9 * 0.5 + 0.1 * 2.9, 0.9 * -0.5 + 0.1 * 3.125
    expected = (REAL - fake_mean).relu().square().mean() + (real_mean - FAKE).relu().square().mean()
    assert answer(plugin, critic).item() == pytest.approx(2 * expected.item())
    assert means_of(plugin) == pytest.approx([real_mean, fake_mean])


def test_before_its_start_it_is_exactly_0_and_copies_the_means_of_the_batch():
    plugin, critic = lecam(active=False)
    real = REAL.clone().requires_grad_()
    for shift in (7.0, 0.0):
        value = answer(plugin, critic, real + shift)
        assert value.item() == 0
        assert means_of(plugin) == pytest.approx([2.9 + shift, 3.125])
    value.backward()
    assert not real.grad.any()


def test_trap_its_means_begin_with_the_first_batch_and_not_at_1000():
    plugin, critic = lecam(start=0, weight=one())
    expected = (REAL - 3.125).relu().square().mean() + (2.9 - FAKE).relu().square().mean()
    assert answer(plugin, critic).item() == pytest.approx(expected.item())


def test_no_gradient_flows_through_the_running_means():
    plugin, critic = lecam(decay=0.0, weight=one())
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    first = answer(plugin, critic, real, fake)
    answer(plugin, critic, real, fake)  # as of another player, before the backward pass
    first.backward()
    torch.testing.assert_close(real.grad, (REAL - 3.125).relu() / 2)
    torch.testing.assert_close(fake.grad, -(2.9 - FAKE).relu() / 2)


def test_a_lecam_that_continues_from_its_state_gives_the_same_values():
    plugin, critic = lecam(decay=0.5)
    answer(plugin, critic)
    state = copy.deepcopy(plugin.state_dict())
    other, its_critic = lecam(decay=0.5)
    other.load_state_dict(state)
    for _ in range(3):
        assert answer(plugin, critic, FAKE, REAL) == answer(other, its_critic, FAKE, REAL)


def test_a_lecam_counts_the_steps_of_d_and_not_those_of_pretraining(tiny):
    run = build(tiny, "lecam = { start = 1, weight = 100.0 }\npretraining = { iterations = 2 }\n")
    seen = []
    for run.iteration in range(4):
        seen.append(iterate(run).get("D/lecam"))
    assert seen[:2] == [None, None]
    assert seen[2].item() == 0
    assert seen[3].item() > 0


def test_each_of_several_discriminators_has_means_of_its_own(tiny):
    text = (
        'other = { use = "patch_discriminator", width = 3, num_layers = 1 }\n'
        "lecam = { start = 1, weight = 100.0 }\n"
    )
    run = build(tiny, text, "num_discriminators=2")
    assert iterate(run)["D/lecam"].item() == 0
    assert iterate(run)["D/lecam"].item() > 0
    one_mean, other = run.recipe.plugins["lecam"].state_dict()["means"]
    assert one_mean.isfinite().all() and other.isfinite().all()
    assert not torch.equal(one_mean, other)


@pytest.mark.parametrize("kind", [SpectralNorm, Orthogonal, Consistency, Lecam])
def test_trap_an_unknown_option_is_an_error_and_not_a_silent_default(kind):
    with pytest.raises(ValidationError, match="loss_weight"):
        kind(loss_weight=50.0)
