"""Draws, dropout and batch norm on each rank's rows are those of the whole batch, cut."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

from ganlab import Losses, Plugin, hookimpl
from ganlab.errors import RecipeError
from ganlab.ranks.world import ALONE, World
from ganlab.testing import Broken, Subject
from ganlab.testing.rules import is_the_same_by_two_processes
from ganlab.testing.turns import InTurns, WaitsInVain, on_ranks

IMAGES = torch.randn(12, 4, 8, 6, generator=torch.Generator().manual_seed(5))
DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "a number an image": lambda x: torch.rand(len(x)),
    "a column an image": lambda x: torch.rand(5, len(x)),
    "a size in a tuple": lambda x: torch.randn((len(x), 1)),
    "a size by name": lambda x: torch.rand(size=(len(x), 2), dtype=torch.float64),
    "two batches in a row": lambda x: torch.rand(2 * len(x)),
    "integers": lambda x: torch.randint(0, 99, (len(x), 3)),
    "like": torch.randn_like,
    "like, channels last": lambda x: torch.rand_like(x.to(memory_format=torch.channels_last)),
    "in place": lambda x: x.new_empty(len(x)).normal_(2, 3),
    "in place, by chance": lambda x: torch.empty_like(x).bernoulli_(0.3),
    "in place, by chances": lambda x: torch.empty_like(x).bernoulli_(x.sigmoid()),
    "by chances": lambda x: torch.bernoulli(x.sigmoid()),
    "around values": lambda x: torch.normal(x, 1.0),
    "a distribution": lambda x: Normal(x, 2.0).rsample(),
    "dropout": lambda x: F.dropout(x, 0.4),
    "dropout of channels": lambda x: F.dropout2d(x, 0.4),
    "a layer": nn.Dropout(0.5),
    "batch norm": lambda x: F.batch_norm(x, None, None, training=True),
    "nothing of the images": lambda x: x + torch.rand(7)[0] + torch.randperm(9)[0],
}


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", DRAWS)
def test_what_is_drawn_for_rows_is_cut_from_the_whole(name: str, parts: int) -> None:
    draw = DRAWS[name]
    torch.manual_seed(3)
    whole = draw(IMAGES)

    def drawn(world: InTurns) -> Tensor:
        torch.manual_seed(3)
        mine = world.rows(IMAGES, parts)
        with world.as_one(parts, len(mine) // parts):
            return draw(mine)

    for rank, mine in enumerate(on_ranks(drawn)):
        along = whole.t() if name == "a column an image" else whole
        blocks = 2 * parts if name == "two batches in a row" else parts
        rows = torch.cat([block.chunk(2)[rank] for block in along.chunk(blocks)])
        assert torch.allclose(mine.t() if name == "a column an image" else mine, rows, atol=1e-6)


def test_batch_norm_has_the_gradients_and_the_statistics_of_the_whole_batch() -> None:
    def trained(images: Tensor) -> tuple[nn.BatchNorm2d, Tensor]:
        norm = nn.BatchNorm2d(4).double()
        norm.bias.data.fill_(0.3)
        images = images.double().requires_grad_()
        norm(images).relu().square().mean().backward()
        assert images.grad is not None
        return norm, images.grad

    whole, gradient = trained(IMAGES)

    def of_rank(world: InTurns) -> tuple[nn.BatchNorm2d, Tensor]:
        mine = world.rows(IMAGES)
        with world.as_one(1, len(mine)):
            norm, gradient = trained(mine)
        world.average([p.grad for p in norm.parameters() if p.grad is not None])
        return norm, gradient / world.size

    for rank, (norm, mine) in enumerate(on_ranks(of_rank)):
        assert torch.allclose(mine, gradient.chunk(2)[rank], atol=1e-15)
        assert torch.allclose(norm.weight.grad, whole.weight.grad, atol=1e-15)
        assert torch.allclose(norm.running_mean, whole.running_mean, atol=1e-15)
        assert torch.allclose(norm.running_var, whole.running_var, atol=1e-15)


@pytest.mark.parametrize("of", ["mean", "rows"])
def test_a_gradient_through_all_ranks_can_be_differentiated_again(of: str) -> None:
    data = torch.linspace(0.1, 2, 6, dtype=torch.float64)

    def squared_gradient(x: Tensor, world: World) -> list[Tensor]:
        weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        seen = (weight * x).tanh()
        loss = world.mean(seen.mean()) ** 3 if of == "mean" else world.gather(seen).std()
        (first,) = torch.autograd.grad(loss, weight, create_graph=True)
        whole = world.mean(first)
        (second,) = torch.autograd.grad(whole.square(), weight)
        world.average([second])
        return [whole.detach(), second]

    expected = squared_gradient(data, ALONE)
    for found in on_ranks(lambda world: squared_gradient(world.rows(data), world)):
        assert torch.allclose(torch.stack(found), torch.stack(expected), rtol=1e-12)


def test_a_rank_that_asks_alone_is_told_so() -> None:
    def asks(world: InTurns) -> Tensor:
        return world.mean(torch.ones(2)) if world.leads else torch.ones(2)

    with pytest.raises(WaitsInVain, match="a rank waits for the sum of the others"):
        on_ranks(asks)
    with pytest.raises(
        WaitsInVain, match=r"one rank shares sum .*\(1,\)., and another sum .*\(2,\)"
    ):
        on_ranks(lambda world: world.mean(torch.ones(1 + world.rank)))


class Jumps(Plugin):
    """It draws in a way that is not made for the whole batch (an example, 2026)."""

    @hookimpl
    def generator_loss(self, fake: Tensor) -> Losses:
        chosen = F.gumbel_softmax(fake.flatten(1), hard=False)
        return {f"G/{self.name}": (chosen * fake.flatten(1)).sum(1).mean()}


def test_a_draw_of_another_kind_is_named_by_the_rule() -> None:
    with pytest.raises(Broken, match="draw for all images at once"):
        is_the_same_by_two_processes(Subject.of(Jumps))


class Eight(Plugin):
    """It draws eight numbers for a whole batch (an example, 2026)."""

    @hookimpl
    def generator_loss(self, fake: Tensor) -> Losses:
        return {f"G/{self.name}": torch.rand(8, generator=self.rng).mean() * fake.square().mean()}


def by_two(batch_size: int) -> None:
    """Assemble a run of two ranks with the plugin `Eight`."""
    subject = Subject.of(Eight)
    with subject.in_a_folder() as folder:
        world, _ = subject.placed(folder, batch_size=batch_size)
        on_ranks(lambda ranks: subject.run_in(world, folder, ranks=ranks, batch_size=batch_size))


def test_a_draw_of_as_many_numbers_as_a_rank_has_images_is_refused() -> None:
    by_two(32)
    for batch_size in (8, 16):
        with pytest.raises(RecipeError, match=r"plugins.eight: (8 random numbers|its generator)"):
            by_two(batch_size)
