"""Which names a run may have: those that are one folder on every system, and harmless to show."""

import re
import unicodedata

from ganlab.errors import RecipeError, clipped, printable

LONGEST = 100  # characters
RULE = (
    f"a name has at most {LONGEST} characters: letters and digits of any language, spaces and "
    ". _ - + = , @ ( ); it begins with a letter, a digit or _, and ends with no dot or space"
)
_MARKS = " ._-+=,@()"
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d|conin\$|conout\$)(\..*)?", re.IGNORECASE)


def check_name(name: str, option: str) -> str:
    """Refuse a name that is not one folder name on every system.

    :param option: with which it was given, such as "--name".
    :raises RecipeError: with the rule.
    """
    fault = _fault(name)
    if fault:
        raise RecipeError(f"{option} {printable(clipped(name, LONGEST))}: {fault}")
    return name


def _fault(name: str) -> str:
    if _DEVICE.fullmatch(name):
        return "on Windows this is a device, not a folder; choose another name"
    if not unicodedata.is_normalized("NFC", name):
        return "its accents are characters of their own (not NFC), so it looks like another name"
    allowed = all(c in _MARKS or _is_of_a_word(c) for c in name)
    begins = name[:1] == "_" or (_is_of_a_word(name[:1]) if name else False)
    if not allowed or not begins or name[-1] in ". " or len(name) > LONGEST:
        return RULE
    return ""


def _is_of_a_word(character: str) -> bool:
    """Whether it is a letter, a digit, or a mark on a letter, as some scripts need them."""
    return unicodedata.category(character)[0] in "LMN"


def shortened(name: str) -> str:
    """A file's name as the beginning of a run's: of printable characters, and not too long."""
    return "".join(c if c.isprintable() else "_" for c in name)[:LONGEST]
