"""Whose code raised an error: the plugin, its hook and the line, read from the traceback."""

import dis
import linecache
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import FrameType, TracebackType

from torch import nn
from torch.optim import Optimizer

from ganlab.errors import GanlabError, first_line
from ganlab.plugin import Plugin, implements

Makers = Mapping[int, tuple[Plugin, str]]
"""`id` of a network or an optimizer -> the plugin that made it, and in which hook."""


@dataclass(frozen=True, slots=True)
class Blame:
    """An error that was raised while a plugin's code ran."""

    plugin: Plugin
    hook: str = ""
    """The hook at work, or a function such as "state_dict"."""
    function: str = ""
    """The innermost function of the plugin: "Net.forward"."""
    place: str = ""
    """Its line: "my.py:7: return self._scale[name]"."""
    asked: str = ""
    """Whose code called this plugin's: "sobel in generator_loss"; "" when no other plugin did."""
    error: str = ""
    """The class of the error and its first line: "KeyError: 'x'"."""

    @property
    def where(self) -> str:
        """Hook and function as a part of a sentence: "make_generator (Net.forward)"."""
        own = self.function.rpartition(".")[2] in ("", self.hook) or self.function == self.hook
        return self.hook if own else f"{self.hook} ({self.function})"

    @property
    def what(self) -> str:
        """A sentence without its subject: "fails in its evaluate: KeyError: 'x' (my.py:7: ...)"."""
        asked = f", called by {self.asked}" if self.asked else ""
        place = f" ({self.place})" if self.place else ""
        return f"fails in its {self.where}{asked}: {self.error}{place}"


def blame(
    error: BaseException, plugins: Iterable[Plugin] = (), makers: Makers | None = None
) -> Blame | None:
    """The innermost plugin whose code was running when an error was raised; None when none was.

    Ctrl-C, and what ganlab itself raises to end a command, is nobody's fault, wherever it arrives.

    :param plugins: of the recipe: what else stands in their files is their code too.
    """
    owners = _Owners(plugins, makers or {})
    for one in _causes(error):
        if not is_interruption(one) and (found := owners.of(one)):
            return replace(found, error=described(one))
    return None


def line_in(error: BaseException, kind: type[Plugin]) -> str:
    """The innermost line of a plugin class's own package in a traceback, or ""."""
    found = [
        _line(frame, number)
        for frame, number in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] in _packages(kind)
    ]
    return found[-1] if found else ""


def described(error: BaseException) -> str:
    """An error in one line, such as "KeyError: 'x'"; of a group the first errors too."""
    error = getattr(error, "inner_exception", error)  # what torch's compiler wraps
    line = first_line(error)
    told = (
        type(error).__name__ if line == type(error).__name__ else f"{type(error).__name__}: {line}"
    )
    if isinstance(error, BaseExceptionGroup):
        told += f": {'; '.join(described(inner) for inner in error.exceptions[:3])}"
    return told


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those that led to it: "generator raised StopIteration" says little."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def is_interruption(error: BaseException) -> bool:
    """Whether an error ends the command and is no fault of the code where it arrives."""
    if isinstance(error, GanlabError) or type(error).__module__.partition(".")[0] == "ganlab":
        return True
    if isinstance(error, Exception) or not error.__traceback__:
        return False
    *_, last = _steps(error)
    if last.tb_frame.f_globals.get("__name__", "").startswith("ganlab."):  # a signal's handler
        return True
    return isinstance(error, KeyboardInterrupt) and not _raises(error)


def _raises(error: BaseException) -> bool:
    """Whether the innermost instruction of an error is a `raise`: Ctrl-C arrives at any other."""
    *_, last = _steps(error)
    return _instruction(last) == "RAISE_VARARGS"


def _steps(error: BaseException) -> Iterator[TracebackType]:
    """The parts of a traceback, the outermost first."""
    step = error.__traceback__
    while step:
        yield step
        step = step.tb_next


def _instruction(step: TracebackType) -> str:
    """What the code of this part was doing, as `dis` calls it."""
    return dis.opname[step.tb_frame.f_code.co_code[step.tb_lasti]]


def _passes_on(step: TracebackType) -> bool:
    """Whether a part is a wrapper at its `yield`: the error of what it wraps passes through it."""
    return _instruction(step) in ("YIELD_VALUE", "RESUME", "SEND")


class _Owners:
    """Whose code a frame is."""

    def __init__(self, plugins: Iterable[Plugin], makers: Makers) -> None:
        self._makers = makers
        self._by_module: dict[str, list[Plugin]] = {}
        for plugin in plugins:
            module = type(plugin).__module__
            # the other files of a plugin's package are its own, too
            for name in {module, module.partition(".")[0]} - {"ganlab"}:
                self._by_module.setdefault(name, []).append(plugin)

    def of(self, error: BaseException) -> Blame | None:
        found: Blame | None = None
        for step in _steps(error):
            frame = step.tb_frame
            if not _passes_on(step) and (owner := self._owner(frame, found)):
                found = self._next(found, *owner, frame, step.tb_lineno)
        return found

    def _owner(self, frame: FrameType, before: Blame | None) -> tuple[Plugin, str] | None:
        """The plugin whose code a frame is, and the hook that the frame begins, or ""."""
        me, code = frame.f_locals.get("self"), frame.f_code
        if isinstance(me, Plugin) and _is_of(me, frame):
            is_property = isinstance(getattr(type(me), code.co_name, None), property)
            begins = not is_property and (
                implements(me, code.co_name) or not before or before.plugin is not me
            )
            return me, code.co_name if begins else ""
        if id(me) in self._makers:
            return self._makers[id(me)]
        module = frame.f_globals.get("__name__", "")
        near = self._by_module.get(module) or self._by_module.get(module.partition(".")[0])
        if not near:
            return None
        owner = before.plugin if before and before.plugin in near else near[0]
        known = before and before.plugin is owner
        return owner, "" if known else _hook_of(owner, me) or code.co_qualname

    def _next(
        self, before: Blame | None, plugin: Plugin, hook: str, frame: FrameType, number: int
    ) -> Blame:
        asked = ""
        if before and before.plugin is not plugin:
            asked = f"{before.plugin.name} in {before.hook}"
        elif before:
            hook, asked = hook or before.hook, before.asked
        kept = before if before and before.plugin is plugin else Blame(plugin)
        if _is_of(plugin, frame):
            function, place = frame.f_code.co_qualname, _line(frame, number)
            place = place if ": " in place or not kept.place else kept.place  # of `exec`, say
        else:  # torch's part of a network that the plugin made
            function, place = kept.function, kept.place
        return Blame(plugin, hook, function, place, asked)


def _hook_of(plugin: Plugin, thing: object) -> str:
    """The hook in which a plugin made a network or an optimizer; "" when that is not certain."""
    if isinstance(thing, Optimizer):
        return "make_optimizer"
    makers = ("make_generator", "make_discriminator")
    hooks = [hook for hook in makers if implements(plugin, hook)
             and not getattr(type(plugin), hook).ganlab_impl["wrapper"]]  # fmt: skip
    return hooks[0] if isinstance(thing, nn.Module) and len(hooks) == 1 else ""


def _is_of(plugin: Plugin, frame: FrameType) -> bool:
    """Whether a frame's code stands in a plugin's own package, or in that of a base class."""
    return frame.f_globals.get("__name__", "").partition(".")[0] in _packages(type(plugin))


def _packages(kind: type[Plugin]) -> set[str]:
    kinds = (base for base in kind.__mro__ if issubclass(base, Plugin))
    return {base.__module__.partition(".")[0] for base in kinds} - {"ganlab"}


def _line(frame: FrameType, number: int) -> str:
    file = frame.f_code.co_filename
    written = linecache.getline(file, number).strip()
    name = file.replace("\\", "/").rpartition("/")[2]
    return f"{name}:{number}: {written}" if written else f"{name}:{number}"
