"""Whether all ranks of a run hold the same weights, optimizers and plugin states."""

import hashlib

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path

from ganlab.errors import GanlabError
from ganlab.run import Run
from ganlab.state import live_state

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class ComeApart(GanlabError):  # noqa: N818  # it names an outcome
    """The ranks of a run hold different numbers."""


def compare_ranks(run: Run) -> None:
    """Check that all ranks hold the same weights, optimizers and plugin states, to the bit.

    Every rank must call it. One pass over the tensors where they are, and one small message.

    :raises ComeApart: on all ranks, naming the first tensor that differs.
    """
    if run.world.size == 1:
        return
    state = live_state(run)
    leaves, _ = tree_flatten_with_path([*state["networks"].items(), *state["plugins"].items()])
    names = [".".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in p) for p, _ in leaves]
    every = run.world.agree(_fingerprints([leaf for _, leaf in leaves]))
    owners = [*state["networks"], *state["plugins"]]
    for place, name in enumerate(names):
        if len({numbers[place] for numbers in every}) > 1:
            owner, _, inside = name.partition(".")
            where = f"{owners[int(owner)]}: {inside.partition('.')[2]}"
            raise ComeApart(
                f"the processes of this run have come apart: {where} is not the same on all of "
                f"them at iteration {run.iteration}; nothing more is saved. A plugin may have "
                "drawn random numbers of its own, or kept a state of its own rows"
            )


def _fingerprints(leaves: list[object]) -> list[int]:
    """A number for each tensor, computed from its bits where it is, and for each plain value."""
    found: list[int] = []
    waiting: list[tuple[int, Tensor]] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            waiting.append((len(found), _sum_of_bits(leaf)))
        digest = hashlib.blake2b(repr(leaf).encode() if not isinstance(leaf, Tensor) else b"")
        found.append(int.from_bytes(digest.digest()[:7], "little"))
    if waiting:
        where = waiting[0][1].device  # so that they come to the host at once
        sums = torch.stack([value.to(where) for _, value in waiting]).tolist()
        for (place, _), value in zip(waiting, sums, strict=True):
            found[place] = value
    return found


def _sum_of_bits(tensor: Tensor) -> Tensor:
    """The sum of a tensor's numbers, their bits read as integers; int64, 0-d."""
    flat = tensor.detach().reshape(-1)
    return flat.view(_BITS.get(flat.element_size(), torch.uint8)).sum(dtype=torch.int64)
