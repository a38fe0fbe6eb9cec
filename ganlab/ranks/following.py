"""What the other processes of a run do while rank 0 leads: they obey its orders."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ganlab.errors import Diverged
from ganlab.evaluation.scores import eval_mode, evaluate_share
from ganlab.iteration import iterate
from ganlab.ranks.agreement import compare_ranks
from ganlab.ranks.many import Many
from ganlab.run import Run
from ganlab.state import restore


def obey(run: Run, world: Many) -> None:
    """Obey the orders of rank 0 until it ends the run.

    :raises LostRank: when rank 0, or another process, is gone.
    """
    while True:
        order, about = world.receive()
        if order == "end":
            return
        _OBEY[order](run, about)


def _iterate(run: Run, about: None) -> None:
    # rank 0 has the same gradients, so it notices the same, and decides
    with suppress(Diverged):
        iterate(run)
        run.iteration += 1


def _evaluate(run: Run, score_bicubic: bool) -> None:
    for plugin in run.recipe.plugins.values():  # a resumed run may begin with an evaluation
        plugin.advance(max(0, run.iteration - 1))
    generator = run.hook.evaluation_generator(generator=run.G)
    with eval_mode(generator):
        evaluate_share(run, generator, score_bicubic)


def _compare(run: Run, about: None) -> None:
    compare_ranks(run)


def _take_over(run: Run, state: dict[str, Any]) -> None:
    restore(run, state, "rank 0")


_OBEY: dict[str, Callable[[Run, Any], None]] = {
    "iterate": _iterate,
    "evaluate": _evaluate,
    "compare": _compare,
    "state": _take_over,
}
