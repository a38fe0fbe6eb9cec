"""The data of a run as digests: which items it reads, and how two runs differ in them."""

import hashlib
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ganlab.files import sha256_of_file

Section = Literal["training", "held_out", "weights", "left_out"]
Items = dict[str, str]
"""Name of an item -> digest of its content, in the order in which the run reads the items."""
Data = dict[Section, dict[str, Items]]
"""Section -> name of the plugin -> its items: what data.json holds.

The items of "left_out" have the reason in the place of a digest. They are told, not compared.
"""

TITLES: dict[Section, str] = {
    "training": "training data",
    "held_out": "held-out images",
    "weights": "weights",
}
_UNITS = {
    "training": ("training item", "training items"),
    "held_out": ("held-out image", "held-out images"),
    "weights": ("weights file", "weights files"),
    "left_out": ("item left out", "items left out"),
}
_SHOWN = 4  # names in a sentence


def content_digest(*parts: object) -> str:
    """A digest of tensors, bytes, text and numbers: what drawn or painted data are made of.

    :returns: the first 32 hexadecimal digits of a sha256.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            values = part.detach().cpu().contiguous()
            digest.update(f"{values.dtype} {[*values.shape]}\0".encode())
            digest.update(values.reshape(-1).view(torch.uint8).numpy().data)  # bfloat16 too
        else:
            digest.update(part if isinstance(part, bytes) else repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:32]


def file_digests(*files: Path) -> Items:
    """The sha256 of each file under its name; "missing" for a file that does not exist.

    A second file of the same name is "w.safetensors (2)".
    """
    found: Items = {}
    seen: Counter[str] = Counter()
    for file in files:
        seen[file.name] += 1
        name = f"{file.name} ({seen[file.name]})" if seen[file.name] > 1 else file.name
        found[name] = file_sha256(file) if file.is_file() else "missing"
    return found


def file_sha256(file: Path) -> str:
    """The sha256 of a file; while its size and time stay, it is read once in a process."""
    stat = file.stat()
    return _file_sha256(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _file_sha256(file: Path, size: int, time: int) -> str:
    return sha256_of_file(file)


def digests(data: Data) -> dict[str, dict[str, Any]]:
    """Digest and number of items of each section, for the manifest.

    The digest of held-out images covers their names, since scores are stored by name. That of
    training data and weights covers contents and their order only: equal pictures under other
    names are the same data, as long as their order is the same.
    """
    found = {}
    for section, plugins in data.items():
        digest = hashlib.sha256()
        for items in plugins.values():
            for name, content in items.items():
                digest.update(f"{name}\0{content}\n".encode() if section == "held_out"
                              else f"{content}\n".encode())  # fmt: skip
        number = sum(map(len, plugins.values()))
        found[str(section)] = {"digest": digest.hexdigest(), "number": number}
    return found


def left_out(data: Data) -> Iterator[str]:
    """A sentence for each plugin that left out items of its data."""
    for name, items in data.get("left_out", {}).items():
        number, which = len(items), _listed("left out", list(items)).partition(": ")[2]
        if number == 1:
            yield f"{name}: 1 item is left out, since it cannot be read: {which}"
        else:
            yield f"{name}: {number:,} items are left out, since they cannot be read: {which}"


def described(data: Mapping[str, Any]) -> str:
    """What `digests` returns, in words: `6 training items (ab12cd34), 4 held-out images (...)`."""
    parts = [
        f"{entry['number']:,} {_unit(section, entry['number'])} ({entry['digest'][:8]})"
        for section, entry in data.items()
    ]
    return ", ".join(parts)


def _unit(section: str, number: int) -> str:
    return _UNITS.get(section, (section, section))[number != 1]


def differences(before: Data, now: Data) -> dict[Section, str]:
    """What changed in each section, in words; empty when a run would read the same data.

    For example {"training": "2 more: a.png, b.png; 1 changed: c.png"}.
    """
    ours, theirs = digests(before), digests(now)
    found: dict[Section, str] = {}
    for section in TITLES:
        if ours.get(section) != theirs.get(section):
            found[section] = "; ".join(_changes(_flat(before, section), _flat(now, section)))
    return found


def as_opened(data: Data, opened: Data) -> Data:
    """The part of a run's data that is known of a recipe that was only opened.

    Files that plugins read when they are started are left out: options and code fix them.
    """
    known = {
        section: {
            name: items
            for name, items in plugins.items()
            if section != "weights" or name in opened.get("weights", {})
        }
        for section, plugins in data.items()
    }
    return {section: plugins for section, plugins in known.items() if plugins}


def renamed(before: Data, now: Data) -> str:
    """Which training items have other names but the same contents in the same order."""
    one, other = (_flat(data, "training") for data in (before, now))
    if list(one.values()) != list(other.values()):
        return ""
    pairs = [f"{a} -> {b}" for a, b in zip(one, other, strict=True) if a != b]
    return _listed("renamed", pairs) if pairs else ""


def trained_on(data: Data) -> list[str]:
    """The held-out images whose pixels are also in the training data, each with its other name."""
    training = {content: name for name, content in _flat(data, "training").items()}
    return [
        name if training[content] == name else f"{name} (there {training[content]})"
        for name, content in _flat(data, "held_out").items()
        if content in training
    ]


def _flat(data: Data, section: Section) -> Items:
    """The items of a section; the plugin's name comes first where several plugins have items."""
    plugins = data.get(section, {})
    several = len(plugins) > 1
    return {
        f"{plugin}: {name}" if several else name: content
        for plugin, items in plugins.items()
        for name, content in items.items()
    }


def _changes(before: Items, now: Items) -> Iterator[str]:
    gone = [name for name in before if name not in now]
    new = [name for name in now if name not in before]
    # an item that kept its content under another name is renamed, not gone and new
    places: dict[str, deque[str]] = {}
    for name in new:
        places.setdefault(now[name], deque()).append(name)
    moved = {name: found.popleft() for name in gone if (found := places.get(before[name]))}
    arrived = set(moved.values())
    told = {
        "more": [name for name in new if name not in arrived],
        "fewer": [name for name in gone if name not in moved],
        "changed": [name for name in before if name in now and now[name] != before[name]],
        "renamed": [f"{a} -> {b}" for a, b in moved.items()],
    }
    for word, names in told.items():
        if names:
            yield _listed(word, names)
    if not any(told.values()):
        yield "the same items in another order"


def _listed(word: str, names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} others" if len(names) > _SHOWN else ""
    return f"{len(names):,} {word}: {', '.join(names[:_SHOWN])}{more}"
