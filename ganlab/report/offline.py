"""A self-contained HTML page: escaped, offline, readable without scripts."""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from ganlab import __version__


def offline_page(template: str, style: str, script: str, **values: Any) -> str:
    """Fill a template of this folder; the page is UTF-8 text.

    The one style sheet and the one script are ganlab's
    own. The Content-Security-Policy names them by their hashes. Apart from them, it allows only
    pictures inside the page.

    :param template, style, script: names of files in this folder.
    :param values: what the template shows.
    """
    css, js = _own(style), _own(script)
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(css)}'; script-src '{_hash(js)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    own = {"css": Markup(css), "js": Markup(js)}  # without </style> and </script>
    return filled(template, version=__version__, policy=policy, **own, **values)


def filled(template: str, **values: Any) -> str:
    """Fill a template of this folder. All text goes through jinja's escaping."""
    return _visible(_template(template).render(**values))


@cache
def _template(name: str) -> Template:
    environment = Environment(
        loader=FunctionLoader(_own),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _own(name: str) -> str:
    return files("ganlab.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _visible(text: str) -> str:
    """Make control characters visible, and marks that change the writing direction."""
    hidden = {*range(32), 127, *range(0x80, 0xA0), 0x200E, 0x200F, 0x2028, 0x2029}
    hidden |= {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
    hidden |= {*range(0xD800, 0xE000)}  # from file names that are not UTF-8
    hidden -= {9, 10}
    return text.translate({code: f"\\u{code:04x}" for code in hidden})
