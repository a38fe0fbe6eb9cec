"""Whether all ranks of a run hold the same weights, optimizers and plugin states."""

import hashlib

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path

from ganlab.errors import GanlabError
from ganlab.run import Run
from ganlab.state import state_of


class ComeApart(GanlabError):  # noqa: N818  # it names an outcome
    """The ranks of a run hold different numbers."""


def compare_ranks(run: Run) -> None:
    """Check that all ranks hold the same state, to the bit. Every rank must call it.

    :raises ComeApart: on all ranks, naming the first tensor that differs.
    """
    if run.world.size == 1:
        return
    state = state_of(run)
    named = {part: state[part] for part in ("networks", "plugins")}
    leaves, _ = tree_flatten_with_path(named)
    mine = [(keystr(path), _fingerprint(leaf)) for path, leaf in leaves]
    every = run.world.agree(digest for _, digest in mine)
    for place, (name, _) in enumerate(mine):
        others = {numbers[place] for numbers in every}
        if len(others) > 1:
            raise ComeApart(
                f"the processes of this run have come apart: {name} is not the same on all of "
                f"them at iteration {run.iteration}; nothing more is saved. A plugin may have "
                "drawn random numbers of its own, or kept a state of its own rows"
            )


def _fingerprint(leaf: object) -> int:
    """63 bits of a digest of a tensor's bytes, or of a plain value."""
    if isinstance(leaf, Tensor):
        flat = leaf.detach().contiguous().cpu().reshape(-1)
        content = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    else:
        content = repr(leaf).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1
