"""Who moves first, what the two steps share, and batches taken in parts."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from ganlab.assembly import assemble
from ganlab.errors import RecipeError
from ganlab.iteration import iterate
from ganlab.limits import Limits
from ganlab.recipe.model import load_recipe
from ganlab.run import Run
from ganlab.session import start

pytestmark = pytest.mark.usefixtures("few_samples")

CPU = torch.device("cpu")
GAME = """\
iterations = 6
batch_size = 4
first = "generator"
evaluate_every = 3
report_every = 2
watch_every = 3

[plugins]
dead_leaves = { crop = 16, num_images = 2, size = 32 }
bicubic = { scale = 4 }
encoder_decoder = { width = 4 }
patch_discriminator = { width = 4, num_layers = 2, norm = "batch" }
bce = { weight = 0.1 }
pixel_loss = { weight = 1.0 }
"""
DROPOUT = """\
from torch import nn
from ganlab import Plugin, hookimpl


class Forgetful(Plugin):
    \"\"\"A discriminator with dropout.\"\"\"

    @hookimpl
    def make_discriminator(self, real_shape):
        return nn.Sequential(nn.Flatten(), nn.Dropout(), nn.LazyLinear(1))
"""
VETO = """\
from typing import ClassVar
from ganlab import Plugin


class Veto(Plugin):
    \"\"\"It would not have it.\"\"\"

    share_forward: ClassVar[bool | None] = False
"""


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Run]:
    def build(*overrides: str) -> Run:
        file = tmp_path / "game.toml"
        file.write_text(GAME)
        (tmp_path / "forgetful.py").write_text(DROPOUT)
        (tmp_path / "veto.py").write_text(VETO)
        return assemble(load_recipe(file, overrides), CPU)

    return build


def states(run: Run) -> list[torch.Tensor]:
    assert run.D is not None
    return [*run.G.state_dict().values(), *run.D.state_dict().values()]


def train(run: Run, iterations: int) -> Run:
    for run.iteration in range(iterations):
        iterate(run)
    return run


def test_g_moves_first_and_d_learns_from_the_images_made_before(build) -> None:
    run = build("share_forward=false")
    plain = build()
    G, D = plain.G, plain.D
    of_g, of_d = (torch.optim.Adam(m.parameters(), 1e-4, (0.9, 0.99), fused=True) for m in (G, D))
    bce = nn.functional.binary_cross_entropy_with_logits
    for run.iteration in range(3):
        iterate(run)
        plain.streams.moment(run.iteration)
        plain.streams.moment(run.iteration, "G", 0)
        batch = plain.hook.sample_batch(batch_size=4, device=CPU)
        fake = G(batch.condition)
        logits = D(fake)
        loss = (fake - batch.real).abs().mean() + 0.1 * bce(logits, torch.ones_like(logits))
        of_g.zero_grad()
        loss.backward()
        of_g.step()
        of_d.zero_grad()
        real, made = D(batch.real), D(fake.detach())
        loss = bce(real, torch.ones_like(real)) + bce(made, torch.zeros_like(made))
        loss.backward()
        of_d.step()
    for one, other in zip(run.G.parameters(), G.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-7)
    for one, other in zip(run.D.parameters(), D.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-7)


OTHERS = {
    "bce": [],
    "relativistic": ["bce=false", "relativistic_average={}"],
    "conditional": ["conditional_discriminator={}"],
    "two discriminators": [
        "num_discriminators=2",
        'coarse={ use = "patch_discriminator", width = 4, num_layers = 1, downsample = 2 }',
    ],
    "penalty": ["patch_discriminator.norm=none", "gradient_penalty={}"],
    "lazy penalty": ["patch_discriminator.norm=none", "r1={ every = 2 }"],
    "features": ["feature_matching={}"],
    "pretraining": ["pretraining={ iterations = 2 }"],
    "pseudo-real": ["apa={ fixed_p = 0.5 }"],
}


@pytest.mark.parametrize("overrides", OTHERS.values(), ids=OTHERS)
def test_sharing_changes_no_number(build, tmp_path: Path, overrides: list[str]) -> None:
    file = build().recipe.file
    lines = []
    for shares in ("true", "false"):
        recipe = load_recipe(file, [*overrides, f"share_forward={shares}"])
        folder, code = start(recipe, "cpu", Limits(None, None), tmp_path / shares, "run")
        assert code == 0
        lines.append(folder.stats.read_bytes())
    assert lines[0] == lines[1]
    runs = [train(build(*overrides, f"share_forward={s}"), 4) for s in ("true", "false")]
    assert runs[0].share_forward and not runs[1].share_forward
    assert all(map(torch.equal, states(runs[0]), states(runs[1])))  # batch norm's statistics too


def test_sharing_saves_one_pass_of_d(build) -> None:
    calls: Counter[str] = Counter()
    for shares in ("true", "false"):
        run = build(f"share_forward={shares}", "watch_every=0")
        run.D.register_forward_hook(lambda *_, shares=shares: calls.update([shares]))
        iterate(run)
    assert calls == {"true": 2, "false": 3}


def test_a_watched_step_shares_nothing_and_gives_the_same(build) -> None:
    watched, plain = build("watch_every=1"), build("watch_every=0")
    train(watched, 3), train(plain, 3)
    assert all(map(torch.equal, states(watched), states(plain)))


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["instance_noise={ sigma = 0.1 }"], "instance_noise augments the images again"),
        (["patch_discriminator.norm=none", "spectral_norm={}"], "changes its .*_u"),
        (["patch_discriminator=false", 'forgetful={ use = "./forgetful.py" }'], "draws random"),
        (['veto={ use = "./veto.py" }'], "veto forbids it"),
        (["accumulate=2"], "accumulate = 2 would keep"),
    ],
)
def test_what_is_in_the_way_of_sharing_is_named(build, overrides, reason: str) -> None:
    run = build(*overrides)
    assert not run.share_forward and re.search(reason, run.notes[0])


def test_a_plugin_that_augments_alike_may_say_so(build) -> None:
    assert build("conditional_discriminator={}").share_forward


@pytest.mark.parametrize("overrides", [["d_steps=2"], ["g_steps=2"]])
def test_the_generator_moves_first_with_one_step_each_only(build, overrides) -> None:
    with pytest.raises(RecipeError, match='first = "generator" needs one D step and one G step'):
        build(*overrides)


ALONE = ["patch_discriminator.norm=none"]


LATER = [*ALONE, "first=discriminator"]
NO_GAME = ["first=discriminator", "d_steps=0", "bce=false", "patch_discriminator=false"]


@pytest.mark.parametrize(
    "overrides",
    [
        *(ALONE, [*ALONE, "r1={}"], [*ALONE, "r2={ every = 2 }"]),
        *(LATER, [*LATER, "r1={}"], [*LATER, "r2={ every = 2 }"]),
        NO_GAME,
    ],
    ids=" ".join,
)
def test_a_batch_in_parts_is_the_same_step(build, overrides: list[str]) -> None:
    settings = [*overrides, "precision=float64", "watch_every=0"]
    whole, parts = (build(*settings, f"accumulate={count}") for count in (1, 4))
    for number in range(3):
        whole.iteration = parts.iteration = number
        losses, others = iterate(whole), iterate(parts)
        assert losses.keys() == others.keys()
        for name, value in losses.items():
            torch.testing.assert_close(others[name], value, rtol=1e-9, atol=1e-12)
    networks = [m for m in (whole.G, whole.D) if m is not None]
    for one, other in zip(networks, (parts.G, parts.D), strict=False):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_parts_hold_less_of_the_graph(build) -> None:
    sizes = []
    for count in (1, 4):
        run = build(f"accumulate={count}", "watch_every=0", "share_forward=false")
        seen: set[int] = set()
        run.G.register_forward_hook(lambda _, inputs, __, seen=seen: seen.add(len(inputs[0])))
        iterate(run)
        sizes.append(seen)
    assert sizes == [{4}, {1}]


def test_batch_norm_in_parts_is_told(build) -> None:
    run = build("accumulate=2", "share_forward=false")
    assert [note for note in run.notes if "held out" not in note] == [
        "batch norm of the discriminator sees 2 samples at a time, not 4: "
        "the step is not the same as without accumulate"
    ]


def test_parts_must_be_equal(build) -> None:
    with pytest.raises(RecipeError, match=r"accumulate = 3 .* choose a divisor"):
        build("accumulate=3")
