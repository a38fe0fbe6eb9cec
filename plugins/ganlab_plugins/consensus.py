"""Consensus optimisation: both players also minimise the gradients of the game."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from ganlab import (
    Batch,
    Losses,
    NonNegativeSchedule,
    Plugin,
    Run,
    Schedule,
    Terms,
    discriminators,
    hookimpl,
)


class Consensus(Plugin):
    """Consensus optimisation (Mescheder et al. 2017, arXiv:1705.10461).

    Each player adds `weight / 2 * |v|^2` to its own loss. v holds the gradient of D's loss with
    respect to D's parameters, and that of G's loss with respect to G's. So the players descend
    towards an equilibrium as well as against each other. As everywhere in ganlab, they take turns,
    each with a batch of its own; the paper updates both at once.

    It needs second derivatives of both networks in full precision: about three times the time and
    memory of a step. v is the gradient of the game alone, so no penalty may be used with it. The
    plugin replaces both steps, with the same losses as the engine's steps.
    """

    couples_players: ClassVar[bool] = True

    weight: NonNegativeSchedule = Schedule.constant(1.0)
    """The paper's gamma."""

    @hookimpl
    def check_recipe(self, run: Run) -> None:
        for other in run.plugins_with("penalty"):
            raise self.error(
                f"does not take account of the penalty of {other.name}; remove one of them"
            )

    @hookimpl
    def discriminator_step(self, run: Run, batch: Batch) -> Losses:
        return run.descend(run.D_optimizer, self._losses_of_d, batch)

    @hookimpl
    def generator_step(self, run: Run, batch: Batch) -> Losses:
        return run.descend(run.G_optimizer, self._losses_of_g, batch)

    def _losses_of_d(self, run: Run, batch: Batch) -> Terms:
        of_d, of_g = _game(run, batch)
        return Terms(of_d | self._agreement(run, of_d, of_g, "D"))

    def _losses_of_g(self, run: Run, batch: Batch) -> Terms:
        of_d, of_g = _game(run, batch)
        return Terms(of_g | self._agreement(run, of_d, of_g, "G"))

    def _agreement(self, run: Run, of_d: Losses, of_g: Losses, role: str) -> Losses:
        v = [*_gradient(of_d, discriminators(run)), *_gradient(of_g, [run.G])]
        squared = torch.stack([self.world.mean(part).square().sum() for part in v]).sum()
        return {f"{role}/{self.name}": self.weight.value / 2 * squared}


def _gradient(losses: Losses, networks: list[nn.Module]) -> tuple[Tensor, ...]:
    parameters = [p for network in networks for p in network.parameters() if p.requires_grad]
    total = torch.stack(list(losses.values())).sum()
    return torch.autograd.grad(total, parameters, create_graph=True, materialize_grads=True)


def _game(run: Run, batch: Batch) -> tuple[Losses, Losses]:
    """D's loss and G's losses on one batch, with gradients for the parameters of D and of G."""
    hook, condition = run.hook, batch.condition
    images = {"fake": run.G(condition), "real": batch.real, "condition": condition}
    real = hook.augment(images=images["real"], condition=condition)
    fake = hook.augment(images=images["fake"], condition=condition)
    of_d: Losses = {}
    of_g: Losses = {}
    judges = discriminators(run)
    for D in judges:
        logits = {"real_logits": D(real), "fake_logits": D(fake)}
        real_label, fake_label = hook.labels(**logits)
        labels = {"real_label": real_label, "fake_label": fake_label}
        adversarial = {"D/adversarial": hook.discriminator_loss(**labels, **logits)}
        _add(of_d, [adversarial], len(judges))
        _add(of_g, run.generator_loss.adversarial(**images, **logits), len(judges))
    _add(of_g, run.generator_loss.content(fake_logits=None, real_logits=None, **images), 1)
    return of_d, of_g


def _add(losses: Losses, terms: list[Losses], count: int) -> None:
    for several in terms:
        for name, term in several.items():
            losses[name] = losses[name] + term / count if name in losses else term / count
