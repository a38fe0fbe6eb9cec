"""Work on many pictures: the images of a folder, read ahead in threads; all faults are told."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from ganlab.errors import GanlabError
from ganlab.images.files import read_image
from ganlab.images.listing import images_of, told_remarks

AHEAD = 2  # images that are read in threads during the computation
Item = TypeVar("Item")
Answer = TypeVar("Answer")


def listed(folder: Path) -> list[Path]:
    """The images of a folder; on stderr their number, and what is left out and why."""
    found = images_of(folder)
    print(f"note: {found.told()}", file=sys.stderr)
    return found.images


def read_noting(path: Path, remarks: dict[str, str]) -> Tensor:
    """Read an image, and note under its path what a user must know about its pixels.

    :returns: uint8 [3 or 1, H, W].
    """
    found: list[str] = []
    image = read_image(path, keep_grey=True, remarks=found)
    remarks |= {str(path): "; ".join(found)} if found else {}
    return image


def tell(remarks: Mapping[str, str]) -> None:
    """Print the remarks on pictures on stderr."""
    for sentence in told_remarks(dict(sorted(remarks.items()))):
        print(f"note: {sentence}", file=sys.stderr)


def beside(
    function: Callable[[Item], Answer], items: Iterable[Item], ahead: int = AHEAD
) -> Iterator[Answer]:
    """Apply a function to items in threads, up to `ahead` items ahead; yields answers in order.

    An error of the function or of the items is raised in order too: after the earlier answers.
    """
    with ThreadPoolExecutor(min(ahead, os.cpu_count() or ahead)) as pool:
        waiting: deque[Future[Answer]] = deque()
        for begun in _begun(pool, function, items):
            waiting.append(begun)
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _begun(
    pool: ThreadPoolExecutor, function: Callable[[Item], Answer], items: Iterable[Item]
) -> Iterator[Future[Answer]]:
    try:
        for item in items:
            yield pool.submit(function, item)
    except Exception as error:
        failed: Future[Answer] = Future()
        failed.set_exception(error)
        yield failed


def or_fault(function: Callable[[Item], Answer]) -> Callable[[Item], Answer | GanlabError]:
    """The function, which now returns an error that is meant for the user instead of raising it."""

    def answer(item: Item) -> Answer | GanlabError:
        try:
            return function(item)
        except GanlabError as fault:
            return fault

    return answer


def sound(items: Iterable[Item | GanlabError], faults: list[GanlabError]) -> Iterator[Item]:
    """The items, without the faults among them, which are put into the list."""
    for item in items:
        if isinstance(item, GanlabError):
            faults.append(item)
        else:
            yield item


def all_sound(items: Iterable[Item | GanlabError], what: str) -> Iterator[Item]:
    """The items, up to the first fault. Then all faults are found, and raised as one error.

    :param what: what cannot be used, for the title of several: "images".
    :raises GanlabError: of the kind of the first fault.
    """
    faults: list[GanlabError] = []
    for item in sound(items, faults):
        if not faults:
            yield item
    if len(faults) > 1:
        raise type(faults[0])(together(f"{len(faults):,} {what} cannot be used:", faults))
    if faults:
        raise faults[0]


def together(title: str, faults: list[GanlabError]) -> str:
    """One message of several."""
    return "\n  ".join([title, *map(str, faults)])
