"""The errors that are printed for the user as one message, without a traceback."""

import re


class GanlabError(Exception):
    """Something outside the recipe stopped the work; the command ends with exit code 1."""

    exit_code = 1

    traceback = ""
    """That of the error from which this message was made, as text."""


class RecipeError(GanlabError, ValueError):
    """The recipe, or the command line, asks for something impossible; exit code 2."""

    exit_code = 2


class Diverged(GanlabError):  # noqa: N818  # it names an outcome
    """A loss or a weight is not finite; exit code 3. No checkpoint holds it."""

    exit_code = 3

    def __init__(self, iteration: int, what: str, step: str = "") -> None:
        """:param iteration: at which it was noticed, counted from 1.

        :param step: the optimizer step that would have been taken, such as "step 1 of D".
        """
        super().__init__(f"iteration {iteration:,}{', ' if step else ''}{step}: {what}")
        self.iteration, self.what, self.step = iteration, what, step


class OutOfMemory(GanlabError):  # noqa: N818  # it names an outcome
    """There was not enough memory; exit code 1. The message says where, and what needs less."""


class PluginFailed(GanlabError):  # noqa: N818  # it names an outcome
    """The code of a plugin raised an error; exit code 1. The message says which, and where."""


LONGEST = 300  # characters of another's message in one of ours


def first_line(error: BaseException) -> str:
    """The first line of an error's text: what comes after it in torch's errors is general."""
    try:
        text = str(error).strip()
    except Exception:  # the class is a stranger's
        text = "(its text cannot be made)"
    return clipped(next(iter(text.splitlines()), type(error).__name__).rstrip("."))


def clipped(text: str, longest: int = LONGEST) -> str:
    """A text, or its beginning when it is longer than a message should quote."""
    return text if len(text) <= longest else f"{text[:longest]}..."


def visible(text: str) -> str:
    """A text of several lines in which every other control character is escaped."""
    parts = re.split(r"([\n\t])", text)
    if all(part.isprintable() for part in parts[::2]):
        return text
    return "".join(part if part in "\n\t" else printable(part) for part in parts)


def printable(text: str) -> str:
    """Text of a stranger with its control characters escaped: a terminal might obey them."""
    return "".join(c if c.isprintable() or c in _SPACES else _escaped(c) for c in text)


_SPACES = "\u00a0\u3000"  # as they are typed in some languages


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
