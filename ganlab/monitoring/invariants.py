"""The cheap invariants of a step, watched while a run trains: version counters and modes."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import Tensor, nn
from torch.optim import Optimizer

from ganlab.plugin import Batch

REMEDY = "`ganlab check` on the recipe names the plugin"


@contextmanager
def step_watched(
    role: str,
    networks: dict[str, nn.Module],
    optimizers: dict[str, Optimizer],
    batch: Batch,
    most_steps: int,
) -> Iterator[list[str]]:
    """Context of one step; afterwards the list has a sentence for each invariant that broke.

    The step moves its own network alone, by one optimizer step or those of plugins with
    `extra_steps`; both networks are in training mode when it is taken; the batch is not changed in
    place. Nothing is read from the device: torch counts the changes of each tensor. A change
    through `.data` is not counted; `ganlab check` compares the values.

    :param role: the network that the step moves, "G" or "D".
    :param networks, optimizers: by role.
    :param most_steps: the largest number of optimizer steps that is planned.
    """
    found: list[str] = []
    taken: list[str] = []
    in_eval: dict[str, None] = {}

    def taking(who: str) -> None:
        taken.append(who)
        in_eval.update((r, None) for r, network in networks.items() if not network.training)

    others = [p for r, network in networks.items() if r != role for p in network.parameters()]
    before = _versions(others), _versions([batch.real, batch.condition])
    with ExitStack() as stack:
        for who, optimizer in optimizers.items():
            stack.enter_context(steps_watched(optimizer, partial(taking, who)))
        yield found
    other = "G" if role == "D" else "D"
    if _versions(others) != before[0]:
        found.append(f"the weights of {other} change in the step of {role}")
    if _versions([batch.real, batch.condition]) != before[1]:
        found.append(f"the batch is changed in place in the step of {role}")
    if len(taken) > most_steps:
        found.append(f"a step of {role} takes {len(taken)} optimizer steps, {most_steps} planned")
    found += [f"{who} is in eval mode in the step of {role}" for who in in_eval]


@contextmanager
def steps_watched(
    optimizer: Optimizer,
    before: Callable[[], object],
    after: Callable[[], object] = lambda: None,
) -> Iterator[None]:
    """Context in which `before` and `after` are called around each step of an optimizer.

    A step that calls `super().step()` is one step. torch calls the hooks of an optimizer inside
    that call, too, once an optimizer of the base class itself has been made in this process.
    """
    depth = 0

    def begins(*_: object) -> None:
        nonlocal depth
        depth += 1
        if depth == 1:
            before()

    def ends(*_: object) -> None:
        nonlocal depth
        depth -= 1
        if depth == 0:
            after()

    handles = [optimizer.register_step_pre_hook(begins), optimizer.register_step_post_hook(ends)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _versions(tensors: list[Tensor] | list[nn.Parameter]) -> int:
    """How often these tensors were changed in place, together."""
    return sum(tensor._version for tensor in tensors)
