"""Every installed plugin keeps the contract of `ganlab.testing`; the list is the entry points.

The kit that a plugin's author uses is used here too. Options are their own `examples`, else their
defaults. What needs the user's files gets a folder of photographs, and seeded weights where
published ones would be read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ganlab.commands.pack_shards import pack_folder
from ganlab.commands.shard_images import Packing
from ganlab.images.files import write_png
from ganlab.images.resampling import resize, to_uint8
from ganlab.recipe.discovery import find_plugin, installed
from ganlab.testing import RULES, Broken, NotApplicable, Rule, Subject, tiny_run
from ganlab.testing.rules import is_the_same_by_two_processes
from ganlab.testing.worlds import images

pytestmark = pytest.mark.usefixtures("seeded_weights")

NAMES = sorted(installed())
SMALL = {"width": 12, "num_blocks": 1, "num_patches": 20}
LARGER = ("vgg_discriminator",)  # batch norm wants more than one pixel of a channel
BESIDE = {"ldl_loss": ["ema"]}
SLOW = ("perceptual_loss", "lpips_loss", "dists_loss")  # whose networks take seconds in float64
FEW = {"fid": {"num_patches": 4}, "kid": {"num_patches": 4}}  # 0.15 s each


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs and weights of a generator, as examples of options name them."""
    folder = tmp_path_factory.mktemp("files")
    generator = torch.Generator().manual_seed(0)
    for part, side, count in (("photographs", 104, 2), ("held_out", 200, 1)):
        (folder / part).mkdir()
        for i in range(count):
            coarse = torch.rand(1, 3, side // 4, side // 4 + 1, generator=generator)
            pixels = to_uint8(resize(coarse, (side, side + 3)))[0]
            write_png(pixels, folder / part / f"{i}.png")
    [*pack_folder(folder / "photographs", folder / "shards", Packing())]
    save_file(tiny_run().G.state_dict(), folder / "generator.safetensors")
    return folder


def subject(name: str, files: Path) -> Subject:
    """The plugin with small networks, and with the files that its examples name."""
    kind = find_plugin(name, "tests")[0]
    options: dict[str, Any] = {key: size for key, size in SMALL.items() if key in kind.model_fields}
    options |= Subject.of(kind).options | FEW.get(name, {})
    for option, value in options.items():
        if isinstance(value, str) and (files / value).exists():
            options[option] = str(files / value)
    if name in ("image_folder", "image_shards"):
        options |= {"evaluation_path": str(files / "held_out"), "crop": 32}
    beside = tuple(find_plugin(other, "tests")[0]() for other in BESIDE.get(name, ()))
    return Subject(kind, options, beside, world=images(64) if name in LARGER else None)


@contextmanager
def skipped_without_its_package(name: str) -> Iterator[None]:
    """Context that skips the test of a plugin whose package is an extra, and not installed."""
    try:
        yield
    except Broken as fault:
        if "needs the package" in str(fault):
            pytest.skip(f"the package of {name} is not installed")
        raise


def cases() -> Iterator[Any]:
    for name in NAMES:
        for rule in RULES:
            long = rule.slow or (name in SLOW and rule.keep is is_the_same_by_two_processes)
            marks = [pytest.mark.long] if long else []
            yield pytest.param(name, rule, id=f"{name}-{rule.name}", marks=marks)


@pytest.mark.parametrize(("name", "rule"), [*cases()])
def test_it_keeps_the_contract(name: str, rule: Rule, files: Path) -> None:
    try:
        with skipped_without_its_package(name):
            rule(subject(name, files))
    except NotApplicable as reason:
        pytest.skip(str(reason))


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("ada", {"initial_p": 0.5, "every": 1}),
    ("ada", {"fixed_p": 0.8, "pipeline": "geom"}),
    ("apa", {"initial_p": 0.5, "every": 1}),
    ("approximate_r2", {"every": 2}),
    ("consistency", {"fake": 1.0}),
    ("dragan", {"noise": "centred"}),
    ("feature_matching", {"kind": "mean"}),
    ("r1", {"every": 2}),
    ("relativistic_average", {"base": "lsgan", "mean_over": "batch"}),
    ("relativistic_average", {"base": "hinge", "detach_means": True}),
]
"""Options with which a plugin takes other ways through a batch."""


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_with_other_options_it_is_the_same_by_two_processes(
    name: str, options: dict[str, Any]
) -> None:
    is_the_same_by_two_processes(Subject(find_plugin(name, "tests")[0], options))
