"""Parts of penalties on D: the gradient at each image, and terms added at every k-th step only."""

from collections.abc import Generator
from typing import ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from ganlab.plugin import Batch, Losses, Plugin, hookimpl
from ganlab.run import Run, Terms, discriminators, mean
from ganlab.schedule import NonNegativeSchedule, Schedule
from ganlab.speed.device import full_float32
from ganlab.steps import images_for_discriminator

PatchReduce = Literal["mean", "sum"]


def input_gradient(discriminator: nn.Module, images: Tensor, patch_reduce: PatchReduce) -> Tensor:
    """The gradient of each image's score with respect to the image; it can be differentiated again.

    The score of an image is the mean or the sum of its patch map. D must judge each image alone
    (a plugin that says `per_sample = True` gets no other D).

    :param images: [N, ...]; they are detached, so no gradient reaches G.
    :returns: [N, number of values of an image]. Take the norm by
        `torch.linalg.vector_norm(g, dim=1)`, whose gradient is 0 at 0; that of the root of a sum
        of squares is NaN there.
    """

    def score(images: Tensor) -> Tensor:
        per_image = discriminator(images).flatten(1)
        # the sum over images changes no image's gradient, because D does not mix images
        return (per_image.mean(1) if patch_reduce == "mean" else per_image.sum(1)).sum()

    # torch.func.grad equals torch.autograd.grad in eager mode. But only it works under
    # torch.compile, and it gives zeros for a critic that ignores its input.
    gradient: Tensor = torch.func.grad(score)(images.detach())
    return gradient.flatten(1)


class LazyPenalty(Plugin):
    """Base of a penalty that may be computed at every k-th D step only, with k times its weight.

    Lazy regularisation (Karras et al. 2020, arXiv:1912.04958, appendix B): after every k-th D step
    there is one more optimizer step on the same batch, whose loss is k times the term alone. Adam
    then takes k + 1 steps instead of k. So its learning rate is multiplied by c = k / (k + 1), and
    its betas are raised to the power of c. With `every = 1` the term is added to D's loss.
    """

    extra_steps: ClassVar[bool] = True

    every: int = Field(1, ge=1)
    """k: compute the term at every k-th D step, with k times its weight; 1: at every step."""

    _num_steps: int = PrivateAttr(0)

    def term(self, discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        """The weighted penalty, a 0-d tensor; the arguments are those of the hook `penalty`."""
        raise NotImplementedError

    @hookimpl
    def penalty(self, discriminator: nn.Module, real: Tensor, fake: Tensor) -> Losses:
        if self.every > 1:
            return {}
        return {f"D/{self.name}": self.term(discriminator, real, fake)}

    @hookimpl(wrapper=True)
    def discriminator_step(self, run: Run, batch: Batch) -> Generator[None, Losses, Losses]:
        losses = yield
        if self.every == 1 or not losses:  # no losses: D did not step
            return losses
        self._num_steps += 1
        if (self._num_steps - 1) % self.every:
            return losses
        alone = run.descend(run.D_optimizer, self._alone, batch)
        return losses | alone | losses  # under one name, the value of the D step counts

    def _alone(self, run: Run, batch: Batch) -> Terms:
        real, fake = images_for_discriminator(run, batch)
        terms = [
            {f"D/{self.name}": self.every * self.term(D, real, fake)} for D in discriminators(run)
        ]
        return Terms(mean(terms))

    @hookimpl(wrapper=True)
    def make_optimizer(
        self, role: str
    ) -> Generator[None, torch.optim.Optimizer, torch.optim.Optimizer]:
        optimizer = yield
        if role == "discriminator" and self.every > 1:
            share = self.every / (self.every + 1)
            for group in optimizer.param_groups:
                if "betas" not in group:
                    raise self.error(
                        "every > 1 rescales Adam, but the discriminator's optimizer is not Adam; "
                        "set every = 1",
                        "every",
                    )
                group["lr"] *= share
                group["betas"] = tuple(beta**share for beta in group["betas"])
        return optimizer

    def state_dict(self) -> dict[str, int]:
        return {"num_steps": self._num_steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._num_steps = state["num_steps"]


class FiniteDifferencePenalty(LazyPenalty):
    """Base of a penalty on D's slope at images, measured from two values of D (Lin et al. 2025).

    Adds `weight * mean over images of (D(x) - D(x + sigma n))^2`, where n ~ N(0, 1) for every value
    and D(x) is the score of an image: its patch map reduced by `patch_reduce`.
    """

    per_sample: ClassVar[bool] = True
    bounds_slope: ClassVar[bool] = True

    weight: NonNegativeSchedule = Schedule.constant(100.0)
    """The paper's lambda."""

    sigma: float = Field(0.01, gt=0)
    """Deviation of the noise, in units of the images (0..1). The paper: 0.01 for images, 0.1 for
    video, both on latents."""

    patch_reduce: PatchReduce = "mean"
    """How a patch map becomes one score; with `sum` the penalty grows with the square of the map's
    h * w."""

    def at(self, discriminator: nn.Module, images: Tensor) -> Tensor:
        """The weighted penalty at these images, a 0-d tensor; no gradient reaches the images."""
        x = images.detach()
        n = torch.randn(x.shape, generator=self.rng, device=x.device, dtype=x.dtype)
        # in TF32 the difference of two close values is noise: the gradient is wrong by a quarter
        with full_float32():
            logits = discriminator(torch.cat([x, x + self.sigma * n])).flatten(1)
        scores = logits.mean(1) if self.patch_reduce == "mean" else logits.sum(1)
        plain, noisy = scores.chunk(2)
        return self.weight.value * (plain - noisy).square().mean()
