"""What an HTML parser makes of a page, and whether the page is safe whatever its texts say."""

import base64
import hashlib
from html.parser import HTMLParser

HOSTILE = "</script><script>alert(1)</script>--> ]]> {{7*7}} javascript:alert(1) \" ' & \u202e\x1b"


class Page(HTMLParser):
    """What an HTML parser makes of a page: its tags, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.own: dict[str, str] = {}
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.own[self._inside] = self.own.get(self._inside, "") + data
        else:
            self.text += data


def check_policy(page: Page) -> None:
    """Assert that one script and one style sheet are allowed, those of ganlab, and nothing else."""
    names = [tag for tag, _ in page.tags]
    assert (names.count("script"), names.count("style"), names.count("base")) == (1, 1, 0)
    assert not {"iframe", "object", "embed", "form", "link", "b"} & set(names)
    policy = next(
        a["content"] or "" for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    for tag in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.own[tag].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy


def links(page: Page) -> list[str]:
    """Where a page leads; asserts that no attribute runs anything or loads from elsewhere."""
    found = []
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name != "style", tag
            if tag == "a" and name == "href":
                found.append(value or "")
            elif name in ("src", "href", "xlink:href", "action", "srcset"):
                assert (value or "").startswith("data:image/png;base64,"), (tag, value)
    return found
