"""What an option says about itself: the value at which it has no effect, and when it begins."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class NoEffect:
    """Says at which value an option switches off what it controls: a weight of 0, for example.

    Written as `decay: Annotated[float, NoEffect(0)] = 0.999`. A recipe that sets the option to
    this value gets a warning. It is not refused, since an ablation compares with and without.
    """

    at: Any


@dataclass(frozen=True, slots=True)
class Begins:
    """Says that an option is a number of iterations, or of D steps, after which something begins.

    Written as `start: Annotated[int, Begins("D steps")] = 1000`. If the run is too short, it never
    begins, and the recipe gets a warning. An option may hold several such numbers in a tuple.
    """

    after: Literal["iterations", "D steps"]
