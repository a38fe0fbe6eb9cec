"""What an option says about itself: no effect, when it begins, whether it may change."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict

STRICT = ConfigDict(
    extra="forbid",
    frozen=True,
    strict=True,
    allow_inf_nan=False,
    use_attribute_docstrings=True,
)
"""How whatever a user writes is read: no unknown key, no value of another type, no nan."""


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


@dataclass(frozen=True, slots=True)
class MayChange:
    """Says that an option may change in a run that has begun, with `ganlab resume RUN --set`.

    Written as `learning_rate: Annotated[float, MayChange()] = 1e-4`. It promises that the state of
    the run so far fits the new value, and that the value is read from the option from then on. An
    option without it may not change. A schedule always may, since it changes in a run anyway; a
    path may too, if the data there are the same. Of an optimizer, the options of the groups that
    `make_optimizer` makes otherwise are changed, and its state is kept.
    """

    alters: bool = True
    """Whether a change can change any figure of the run. If not, the run still counts as one of its
    recipe from the start."""
    only: tuple[str, ...] = ()
    """Of an option that is a table: the keys that may change; all of them if empty."""
