"""The errors that are printed for the user as one message, without a traceback."""


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

    def __init__(self, iteration: int, what: str) -> None:
        """:param iteration: at which it was noticed, counted from 1."""
        super().__init__(f"iteration {iteration:,}: {what}")
        self.iteration, self.what = iteration, what


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
    line = next(iter(text.splitlines()), type(error).__name__).rstrip(".")
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


def printable(text: str) -> str:
    """Text of a stranger without control characters, which a terminal might obey."""
    return "".join(c if c.isprintable() else "?" for c in text)
