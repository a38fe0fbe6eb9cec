"""How strong each loss's gradient is on its network, measured in `Run.descend` before the step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ganlab.plugin import Losses


def gradients(loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """The gradient of one loss for each trainable parameter. The graph is kept.

    :param parameters: those that do not require a gradient are skipped.
    :returns: one tensor for each of the others; zeros where the loss does not depend on it.
    """
    wanted = [p for p in parameters if p.requires_grad]
    if not loss.requires_grad or not wanted:
        return [torch.zeros_like(p) for p in wanted]
    return list(torch.autograd.grad(loss, wanted, retain_graph=True, materialize_grads=True))


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of many tensors taken as one long vector, 0-d."""
    return get_total_norm(tensors) if tensors else torch.zeros(())


@contextmanager
def attributed(
    role: str,
    module: nn.Module,
    losses: Losses,
    average: Callable[[Sequence[Tensor]], None] = lambda _: None,
) -> Iterator[Losses]:
    """Context that measures a step. Enter it before backward, leave it after the optimizer step.

    Each loss has `gradient/<name>`, the norm of its gradient on the network, and `share/<name>`,
    that norm divided by the sum of all. Each pair of losses has `cosine/<name>,<name>`: 1 where
    both gradients have the same direction, -1 where they are opposite. `health/<role>_update` is
    |step| / |weights|, about 1e-3 in a network that learns well (Karpathy's rule of thumb). The
    step itself is not changed.

    :param role: "G" or "D".
    :param average: makes gradients those of the whole batch, in place, where several processes have
        parts of it.
    :returns: a dict of 0-d tensors on the device; it is complete when the block is left.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    found = {name: gradients(loss, parameters) for name, loss in losses.items()}
    for gradient in found.values():
        average(gradient)
    norms = {name: norm(gradient) for name, gradient in found.items()}
    whole = torch.stack(list(norms.values())).sum()
    seen = {f"gradient/{name}": value for name, value in norms.items()}
    if len(losses) > 1:
        seen |= {f"share/{name}": _over(value, whole) for name, value in norms.items()}
    for (one, a), (other, b) in combinations(found.items(), 2):
        product = torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()
        seen[f"cosine/{one},{other}"] = _over(product, norms[one] * norms[other])
    del found
    before = [p.detach().clone() for p in parameters]
    yield seen
    moved = [p.detach() - old for p, old in zip(parameters, before, strict=True)]
    seen[f"health/{role}_update"] = _over(norm(moved), norm(before))


def of_logits(real_logits: Tensor, fake_logits: Tensor, by_sign: bool) -> Losses:
    """Figures of how D judges a batch, each 0-d and without gradient.

    `health/paired_accuracy` is the share of places where the real image has the larger logit.
    Where the sign of a logit is D's decision, there are also `health/real_accuracy`,
    `health/fake_accuracy`, and `health/saturation`, the share of logits of which D is more than
    99 % sure.

    :param real_logits, fake_logits: of the same shape.
    """
    real, fake = real_logits.detach(), fake_logits.detach()
    seen = {"health/paired_accuracy": _share(real > fake)}
    if by_sign:
        sure = torch.cat([(real.sigmoid() > 0.99).flatten(), (fake.sigmoid() < 0.01).flatten()])
        seen |= {
            "health/real_accuracy": _share(real > 0),
            "health/fake_accuracy": _share(fake < 0),
            "health/saturation": _share(sure),
        }
    return seen


def _share(places: Tensor) -> Tensor:
    return places.float().mean()


def _over(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, or 0 where the denominator is 0."""
    return torch.where(denominator > 0, numerator / denominator, torch.zeros_like(denominator))
