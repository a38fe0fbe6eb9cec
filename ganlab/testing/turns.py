"""Several ranks of a run within one process: a thread for each, of which one runs at a time.

A rank runs until it needs something of the others. So a test of several ranks is repeatable, needs
no connection, and can say which rank waits in vain.
"""

from collections.abc import Callable
from contextvars import copy_context
from threading import Semaphore, Thread
from typing import Any, TypeVar

import torch
from torch import Tensor

from ganlab.ranks.many import Many
from ganlab.ranks.world import World

Value = TypeVar("Value")


class WaitsInVain(Exception):  # noqa: N818  # it names an outcome
    """One rank needs something of the others, and they do not take part."""


class _LeftAlone(BaseException):
    """Ends the thread of a rank when another one has failed."""


class InTurns(Many):
    """A rank that takes turns with the others."""

    def __init__(self, rank: int, turns: "_Turns") -> None:
        World.__init__(self)
        self.rank, self.size, self._turns = rank, turns.size, turns
        self._called_off = False

    def total(self, tensor: Tensor) -> Tensor:
        every = self._shared("sum", tensor)
        with torch.no_grad():
            return tensor.copy_(torch.stack(every).sum(0))

    def of_each(self, tensor: Tensor) -> list[Tensor]:
        return self._shared("rows", tensor)

    def agree(self, values: Any) -> list[list[int]]:
        found: list[list[int]] = self._turns.exchange(self.rank, ("numbers", ()), list(values))
        return found

    def _shared(self, what: str, tensor: Tensor) -> list[Tensor]:
        form = (what, (tensor.dtype, tuple(tensor.shape)))
        found: list[Tensor] = self._turns.exchange(self.rank, form, tensor.detach().clone())
        return found


def on_ranks(function: Callable[[InTurns], Value], size: int = 2) -> list[Value]:
    """What a function of a rank returns on each of the ranks of one run.

    :raises WaitsInVain: when not all ranks exchange the same things.
    """
    return _Turns(size).taken(function)


class _Turns:
    def __init__(self, size: int) -> None:
        self.size = size
        self._turn = [Semaphore(0) for _ in range(size)]
        self._ended: set[int] = set()
        self._forms: dict[int, Any] = {}  # of what a rank has given, and waits for the others'
        self._given: dict[int, Any] = {}
        self._answers: dict[int, list[Any]] = {}
        self._draws = [torch.default_generator.get_state() for _ in range(size)]
        self._errors: list[BaseException] = []

    def taken(self, function: Callable[[InTurns], Value]) -> list[Value]:
        found: dict[int, Value] = {}

        def run(rank: int) -> None:
            self._wait(rank)
            try:
                if not self._errors:
                    found[rank] = function(InTurns(rank, self))
            except _LeftAlone:
                pass
            except BaseException as error:  # told by the thread that asked
                self._errors.append(error)
            self._ended.add(rank)
            self._pass_on(rank)

        before = torch.default_generator.get_state()
        threads = [
            Thread(target=copy_context().run, args=(run, rank), daemon=True)
            for rank in range(self.size)
        ]
        for thread in threads:
            thread.start()
        self._turn[0].release()
        for thread in threads:
            thread.join()
        torch.default_generator.set_state(before)
        if self._errors:
            raise self._errors[0]
        return [found[rank] for rank in range(self.size)]

    def exchange(self, rank: int, form: Any, value: Any) -> list[Any]:
        """What every rank has given; waits for those that have not."""
        self._forms[rank], self._given[rank] = form, value
        if len(self._given) == self.size:
            self._require_one_form()
            every = [self._given[each] for each in range(self.size)]
            self._answers = dict.fromkeys(range(self.size), every)
            self._given, self._forms = {}, {}
        else:
            self._pass_on(rank)
            self._wait(rank)
            if self._errors:
                raise _LeftAlone
            if rank not in self._answers:
                raise WaitsInVain(f"a rank waits for the {form[0]} of the others, which have ended")
        return self._answers.pop(rank)

    def _require_one_form(self) -> None:
        if len(forms := set(self._forms.values())) > 1:
            one, other, *_ = sorted(f"{what} {list(of)}" for what, of in forms)
            raise WaitsInVain(f"one rank shares {one}, and another {other}")

    def _pass_on(self, rank: int) -> None:
        """Give the turn to the next rank that can go on, or else to one that waits in vain."""
        others = [(rank + step) % self.size for step in range(1, self.size)]
        left = [other for other in others if other not in self._ended]
        able = [other for other in left if other not in self._given or other in self._answers]
        self._draws[rank] = torch.default_generator.get_state()
        if left:
            self._turn[(able or left)[0]].release()

    def _wait(self, rank: int) -> None:
        self._turn[rank].acquire()
        # torch's own generator is one for all threads, and the processes of a run have one each
        torch.default_generator.set_state(self._draws[rank])
