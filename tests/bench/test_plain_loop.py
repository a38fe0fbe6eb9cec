"""The plain loop that ganlab is timed beside does the same work: same losses, same weights.

To rounding: they sum D's gradients in another order, and ganlab's Adam is fused.
"""

from pathlib import Path

import plain
import pytest
import torch
from torch import Tensor, nn

from ganlab import Batch, hookimpl
from ganlab.assembly import assemble
from ganlab.iteration import iterate
from ganlab.recipe.model import load_recipe

CPU = torch.device("cpu")
ITERATIONS = 6
RECIPE = """\
iterations = 6
batch_size = 4
first = "generator"
watch_every = 0

[plugins]
dead_leaves = { crop = 32, num_images = 2, size = 48 }
bicubic = { scale = 4 }
srresnet = { norm = "none", width = 8, num_blocks = 2 }
vgg_discriminator = { width = 4 }
bce = { weight = 0.005 }
pixel_loss = { weight = 1.0 }
"""


class Keeper:
    """Keeps the batches that a run trains on."""

    def __init__(self) -> None:
        self.pairs: list[plain.Pair] = []

    @hookimpl(wrapper=True)
    def sample_batch(self):
        batch: Batch = yield
        self.pairs.append((batch.condition, batch.real))
        return batch


def give_weights(mine: nn.Module, theirs: nn.Module) -> None:
    """Load weights into the same network of other names, whose order is the same."""
    mine.load_state_dict(dict(zip(mine.state_dict(), theirs.state_dict().values(), strict=True)))


def trainable(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("share", [True, False], ids=["shared", "not shared"])
@pytest.mark.parametrize(
    ("precision", "of_losses", "of_weights"), [("float64", 1e-12, 1e-11), ("float32", 1e-5, 1e-3)]
)
def test_ganlab_and_the_plain_loop_train_alike(
    tmp_path: Path, precision: str, of_losses: float, of_weights: float, share: bool
) -> None:
    """Relative errors of the losses, and of the way that the weights have gone after 6 steps."""
    file = tmp_path / "same.toml"
    file.write_text(RECIPE)
    options = [f"precision={precision}", f"share_forward={str(share).lower()}"]
    run = assemble(load_recipe(file, options), CPU)
    assert run.D is not None and run.share_forward is share
    torch.manual_seed(0)
    networks = [net.to(run.dtype) for net in (plain.SRResNet(8, 2), plain.vgg_discriminator(4, 32))]
    for mine, theirs in zip((run.G, run.D), networks, strict=True):
        give_weights(mine, theirs)
    before = [trainable(net) for net in networks]
    run.manager.register(keeper := Keeper())

    mine, theirs = [], []
    for run.iteration in range(ITERATIONS):
        losses = iterate(run)
        names = ("G/pixel_loss", "G/adversarial", "D/adversarial")
        mine.append(torch.stack([losses[name].double() for name in names]))

    def tell(found: dict[str, Tensor]) -> None:
        if found:
            three = [found["l1"], found["adversarial"], found["real"] + found["fake"]]
            theirs.append(torch.stack(three).detach().double())

    plain.train(*networks, iter(keeper.pairs), ITERATIONS, tell=tell)

    assert (torch.stack(mine) / torch.stack(theirs) - 1).abs().max() < of_losses
    for network, other, start in zip((run.G, run.D), networks, before, strict=True):
        way = trainable(other) - start
        assert way.norm() > 0
        assert (trainable(network) - trainable(other)).norm() < of_weights * way.norm()
