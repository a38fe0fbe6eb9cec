"""Penalties taken at every k-th step, and the precision in which the engine asks for them."""

import pytest
import torch

from ganlab.assembly import assemble
from ganlab.checkpoint import load_checkpoint, write_checkpoint
from ganlab.errors import RecipeError
from ganlab.iteration import iterate
from ganlab.recipe.model import load_recipe
from ganlab.run import Run
from ganlab.state import state_of

CPU = torch.device("cpu")
ADAM = "adam = { learning_rate = 1e-3, betas = [0.5, 0.9] }\n"


def build(tiny, text, *overrides) -> Run:
    file = tiny.with_name("lazy.toml")
    file.write_text(tiny.read_text() + text)
    return assemble(load_recipe(file, ["gradient_penalty=false", *overrides]), CPU)


def train(run, count):
    for _ in range(count):
        yield iterate(run)
        run.iteration += 1


def test_at_every_4th_d_step_comes_one_more_step_on_the_term_alone(tiny):
    run = build(tiny, "r1 = { every = 4 }\n", "d_steps=2")
    steps = []
    run.D_optimizer.register_step_post_hook(lambda *_: steps.append(1))
    named = ["D/r1" in losses for losses in train(run, 6)]
    assert len(steps) == 12 + 3  # of 12 D steps, the 1st, the 5th and the 9th
    assert named == [True, False, True, False, True, False]


@pytest.mark.parametrize("name", ["r1", "r2", "approximate_r1", "approximate_r2"])
def test_the_lazy_term_is_k_times_as_heavy(tiny, name):
    # at learning rate 0 the term is asked of one D, lazily in another step of the same iteration
    still = "adam={ learning_rate = 1e-30 }"
    plain = next(train(build(tiny, f"{name} = {{ weight = 3.0 }}\n", still), 1))
    lazy = next(train(build(tiny, f"{name} = {{ weight = 3.0, every = 16 }}\n", still), 1))
    ratio = (lazy[f"D/{name}"] / plain[f"D/{name}"]).item()
    assert ratio == pytest.approx(16, rel=1e-4)


@pytest.mark.parametrize("every", [1, 4, 16])
def test_adam_of_d_is_rescaled_as_stylegan2_does_and_that_of_g_is_not(tiny, every):
    run = build(tiny, ADAM + f"r1 = {{ every = {every} }}\n")
    share = every / (every + 1) if every > 1 else 1.0
    (group,) = run.D_optimizer.param_groups
    assert group["lr"] == 1e-3 * share
    assert group["betas"] == (0.5**share, 0.9**share)
    (group,) = run.G_optimizer.param_groups
    assert group["lr"] == 1e-3 and tuple(group["betas"]) == (0.5, 0.9)


def test_a_lazy_run_that_is_resumed_between_two_terms_goes_on_as_if_never_stopped(tiny, tmp_path):
    text = ADAM + "r1 = { every = 3 }\nlecam = { start = 2 }\napproximate_r2 = { every = 2 }\n"
    whole = build(tiny, text)
    expected = list(train(whole, 7))
    first = build(tiny, text)
    got = list(train(first, 4))
    write_checkpoint(state_of(first), tmp_path)
    second = build(tiny, text)
    assert load_checkpoint(second, tmp_path) == 4
    got += list(train(second, 3))
    assert got == expected
    assert [("D/r1" in losses) for losses in got] == [True, False, False] * 2 + [True]
    assert all(map(torch.equal, second.D.parameters(), whole.D.parameters()))


def test_a_lazy_penalty_on_an_optimizer_without_betas_is_refused_with_a_remedy(tiny):
    (tiny.parent / "sgd.py").write_text(
        "import torch\nfrom ganlab import Plugin, hookimpl\n\n\nclass Sgd(Plugin):\n"
        "    @hookimpl\n    def make_optimizer(self, module):\n"
        "        return torch.optim.SGD(module.parameters(), lr=0.1)\n"
    )
    with pytest.raises(RecipeError, match=r"rescales Adam.*set every = 1"):
        build(tiny, 'sgd = { use = "./sgd.py" }\nr1 = { every = 4 }\n')
    assert iterate(build(tiny, 'sgd = { use = "./sgd.py" }\nr1 = {}\n'))["D/r1"] > 0


SPY = """\
import torch

from ganlab import LazyPenalty


class Spy(LazyPenalty):
    def term(self, discriminator, real, fake):
        assert real.dtype == fake.dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu")
        logits = discriminator(real)
        assert logits.dtype == torch.float32
        return logits.square().mean()
"""

LISTENER = """\
import torch

from ganlab import Plugin, hookimpl


class Listener(Plugin):
    @hookimpl
    def penalty(self, real_logits, fake_logits):
        # D itself ran in bfloat16: seven bits after the leading one
        assert real_logits.dtype == fake_logits.dtype == torch.float32
        assert torch.equal(real_logits, real_logits.bfloat16().float())
        return {}
"""


@pytest.mark.parametrize("every", [1, 2])
def test_penalties_are_asked_in_float32_outside_autocast(tiny, monkeypatch, every):
    monkeypatch.setattr("ganlab.run.autocast", lambda *_: torch.autocast("cpu", torch.bfloat16))
    (tiny.parent / "spy.py").write_text(SPY)
    (tiny.parent / "listener.py").write_text(LISTENER)
    text = (
        f'spy = {{ use = "./spy.py", every = {every} }}\nlistener = {{ use = "./listener.py" }}\n'
    )
    run = build(tiny, text + "r1 = {}\napproximate_r1 = {}\ndragan = {}\nconsistency = {}\n")
    losses = iterate(run)
    assert losses["D/spy"] > 0
    assert all(losses[f"D/{name}"].isfinite() for name in ("r1", "dragan", "consistency"))


@pytest.mark.parametrize("every", [1, 2])
def test_trap_a_penalty_sees_what_the_discriminator_was_shown(tiny, every):
    # after augment: of images that augment makes 0, D's answer has no spread
    (tiny.parent / "black.py").write_text(
        "from ganlab import Plugin, hookimpl\n\n\nclass Black(Plugin):\n"
        "    @hookimpl(wrapper=True)\n    def augment(self):\n        return 0 * (yield)\n"
    )
    (tiny.parent / "spread.py").write_text(
        "from ganlab import LazyPenalty\n\n\nclass Spread(LazyPenalty):\n"
        "    def term(self, discriminator, real, fake):\n"
        "        return 0.5 + real.std() + fake.std() + 0 * discriminator(real).sum()\n"
    )
    text = (
        f'black = {{ use = "./black.py" }}\nspread = {{ use = "./spread.py", every = {every} }}\n'
    )
    assert iterate(build(tiny, text))["D/spread"].item() == 0.5 * every


def test_the_penalty_of_a_bfloat16_run_is_that_of_a_float32_run(tiny, monkeypatch):
    values = []
    for _ in range(2):
        values.append(iterate(build(tiny, "r1 = {}\n"))["D/r1"].item())
        monkeypatch.setattr("ganlab.run.autocast", lambda *_: torch.autocast("cpu", torch.bfloat16))
    assert values[0] == values[1]  # R1 looks at real images alone
