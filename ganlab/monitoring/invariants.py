"""The cheap invariants of a step, watched while a run trains: version counters and modes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

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
            handle = optimizer.register_step_pre_hook(lambda *_, who=who: taking(who))
            stack.callback(handle.remove)
        yield found
    other = "G" if role == "D" else "D"
    if _versions(others) != before[0]:
        found.append(f"the weights of {other} change in the step of {role}")
    if _versions([batch.real, batch.condition]) != before[1]:
        found.append(f"the batch is changed in place in the step of {role}")
    if len(taken) > most_steps:
        found.append(f"a step of {role} takes {len(taken)} optimizer steps, {most_steps} planned")
    found += [f"{who} is in eval mode in the step of {role}" for who in in_eval]


def _versions(tensors: list[Tensor] | list[nn.Parameter]) -> int:
    """How often these tensors were changed in place, together."""
    return sum(tensor._version for tensor in tensors)
