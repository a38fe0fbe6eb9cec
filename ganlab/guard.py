"""The guard before an optimizer step: no number that is not finite reaches the weights.

It looks at the losses, the gradients and the learning rate. A gradient is refused too when its norm
is beyond sqrt(the largest number), 1.8e19 in float32: Adam keeps the square of a gradient, which
would be infinite, and would hold the weight still from then on.

On a CPU the guard raises `Diverged` before the step. On other devices it waits for nothing: the
fused optimizers of torch leave the step out on the device, as they do for `GradScaler`, and the
flag is read with the losses, at the next report and before anything is saved.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

FLAG = "nonfinite"
"""Name of the flag among the values that a step gives on other devices than a CPU."""


def is_sound(optimizer: Optimizer, totals: Sequence[Tensor]) -> bool:
    """Whether the step that is due would keep the weights finite. Waits for the device.

    :param totals: what the backward passes began from, 0-d each.
    """
    gradients = _gradients(optimizer)
    return (
        all(math.isfinite(total.item()) for total in totals)
        and (not gradients or _length(gradients).item() <= _limit(gradients))
        and all(math.isfinite(group["lr"]) for group in optimizer.param_groups)
    )


def flag_of(optimizer: Optimizer, totals: Sequence[Tensor]) -> Tensor:
    """1 where `is_sound` is False, else 0; float32 0-d, without waiting for the device."""
    gradients = _gradients(optimizer)
    rates = [group["lr"] for group in optimizer.param_groups]
    sound = torch.stack([total.detach() for total in totals]).isfinite().all()
    if gradients:
        sound = sound & (_length(gradients) <= _limit(gradients))
    for rate in rates:
        sound = sound & (rate.isfinite() if isinstance(rate, Tensor) else math.isfinite(rate))
    return (~sound).to(torch.float32)


@contextmanager
def left_out_where(flag: Tensor, optimizer: Any) -> Iterator[None]:
    """Context in which a fused optimizer's step changes nothing where the flag is 1.

    The step of another optimizer is taken: the run ends before anything of it is saved.
    """
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        yield
        return
    optimizer.found_inf = flag
    try:
        yield
    finally:
        del optimizer.found_inf


def fault_of(module: nn.Module, optimizer: Optimizer, losses: dict[str, Tensor]) -> str:
    """What is not finite before a step, by the names of losses and parameters.

    :param losses: of the last part of the batch.
    """
    bad = [name for name, loss in losses.items() if not loss.isfinite().all()]
    if bad:
        return f"{_few(bad)} is not finite"
    for group in optimizer.param_groups:
        if not math.isfinite(group["lr"]):
            return f"the learning rate is {float(group['lr'])}"
    named = [(name, p.grad) for name, p in module.named_parameters() if p.grad is not None]
    bad = [name for name, gradient in named if not are_finite([gradient])]
    if bad:
        return f"the gradient of {_few(bad)} is not finite"
    largest = max(named, key=lambda pair: pair[1].abs().max().item(), default=("its weights", None))
    return f"the gradient of {largest[0]} is too large: its square is not finite"


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers are finite. Waits for the device: as a rule once."""
    kept = [t.detach() for t in tensors if t.is_floating_point() and t.numel()]
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in kept:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return all(_are_finite(group) for group in groups.values())


def _are_finite(tensors: list[Tensor]) -> bool:
    if _length(tensors).isfinite():
        return True
    # finite numbers whose squares overflow: only then is the slower norm needed
    return bool(torch.stack(torch._foreach_norm(tensors, math.inf)).isfinite().all())


def _gradients(optimizer: Optimizer) -> list[Tensor]:
    groups = optimizer.param_groups
    return [p.grad for group in groups for p in group["params"] if p.grad is not None]


def _length(tensors: list[Tensor]) -> Tensor:
    """The sum of the Euclidean norms, 0-d; never less than the largest number.

    On a CPU it takes a tenth of the time of the largest number itself (torch 2.15).
    """
    return torch.stack(torch._foreach_norm(tensors)).sum()


def _limit(gradients: Sequence[Tensor]) -> float:
    return math.sqrt(torch.finfo(gradients[0].dtype).max)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
