"""`ganlab weights`: every file that a plugin pins can be fetched by the command its error names."""

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from ganlab_plugins.dists import DISTS
from ganlab_plugins.dists_loss import DISTSLoss
from ganlab_plugins.fid import FID
from ganlab_plugins.kid import KID
from ganlab_plugins.lpips import LPIPS
from ganlab_plugins.lpips_loss import LPIPSLoss
from ganlab_plugins.niqe import NIQE
from ganlab_plugins.perceptual_loss import PerceptualLoss
from loopback import Site, serving

from ganlab import Plugin, PublishedFile, RecipeError, VGGFeatures, load_weights, weights_file
from ganlab.cli import main
from ganlab.commands import fetch, weights
from ganlab.recipe.discovery import installed

READERS = [PerceptualLoss, LPIPSLoss, LPIPS, DISTSLoss, DISTS, FID, KID, NIQE]
CONTENT = b"weights" * 100
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["weights", *arguments], catch_exceptions=False)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetch, "LARGE", 10_000)
    with serving(Site(CONTENT)) as site:
        yield site


@pytest.fixture
def published(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[PublishedFile]:
    """The one file that is declared, by two plugins; it belongs into a cache of its own."""
    file = PublishedFile("judge", f"{site.address}/judge.pth", "free", 700, sha256=SHA256)
    declare(monkeypatch, file)
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GANLAB_STATE", str(tmp_path / "state"))
    yield file
    weights.declared.cache_clear()


def declare(monkeypatch: pytest.MonkeyPatch, file: PublishedFile) -> None:
    monkeypatch.setattr(weights, "_by_plugin", lambda: {"critic": (file,), "score": (file,)})
    weights.declared.cache_clear()


# --- what is declared ----------------------------------------------------------------------------


def test_every_plugin_that_reads_a_published_file_declares_it() -> None:
    classes = [point.load() for point in installed().values()]
    readers = {
        each for each in classes
        if "load_weights" in vars(sys.modules[each.__module__]) or each in (FID, KID)
    }  # fmt: skip
    assert readers == set(READERS)
    assert all(each.published for each in readers)


@pytest.mark.parametrize("plugin", READERS)
def test_the_message_of_a_missing_file_names_the_command_that_fetches_it(
    plugin: type[Plugin], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path))
    with pytest.raises(RecipeError, match="needs the weights file") as caught:
        read(plugin())
    found = re.search(r"file (\S+); `ganlab weights fetch (\w+)` gets it \(", str(caught.value))
    assert found, str(caught.value)
    assert weights._named(found[2]).path == Path(found[1])
    name = plugin.__module__.rpartition(".")[2]  # it stands for the file that it reads
    assert weights._named(name).path == Path(found[1])


def read(plugin: Plugin) -> None:
    class Run:
        device = torch.device("cpu")
        dtype = torch.float32

    plugin.check_recipe(run=Run())


def test_a_file_of_the_users_own_choice_is_not_promised_by_the_command(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"put it there, or leave out the option `weights` and"):
        read(NIQE(weights=tmp_path / "mine.npz"))


def test_a_plugin_that_declares_nothing_gets_the_address_alone(tmp_path: Path) -> None:
    class Judge(Plugin):
        """Reads a file."""

    source = "https://example.org/a.pth"
    with pytest.raises(RecipeError, match=r"; get it from https://example.org/a.pth, and put it"):
        load_weights(Judge(), torch.nn.Linear(1, 1), tmp_path / "a.pth", "", source)


@pytest.mark.parametrize("architecture", sorted(VGGFeatures.FILES))
def test_the_files_of_torchvision_are_as_it_states_them(architecture: str) -> None:
    from torchvision.models import get_model_weights

    stated = get_model_weights(architecture)["IMAGENET1K_V1"]
    file = VGGFeatures.FILES[architecture]
    assert file.source == stated.url
    assert file.size / 2**20 == pytest.approx(stated.meta["_file_size"], abs=6e-4)
    assert file.file_name.endswith(f"-{file.sha256[:8]}.pth")


def test_every_declared_file_has_a_licence_a_size_and_a_whole_digest() -> None:
    weights.declared.cache_clear()
    names = [each.file.name for each in weights.declared()]
    assert {"vgg19", "vgg16", "alexnet", "squeezenet", "inception", "niqe"} <= set(names)
    assert len(set(names)) == len(names)
    for each in weights.declared():
        assert each.file.source.startswith("https://") and each.file.licence and each.file.size
        assert re.fullmatch(r"[0-9a-f]{64}", each.file.sha256)


# --- the commands --------------------------------------------------------------------------------


def test_size_licence_and_digest_are_shown_before_anything_is_asked_for(
    site: Site, published: PublishedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "LARGE", 700)
    refused = invoke("fetch", "judge")
    assert refused.exit_code == 2
    assert refused.stderr == "to fetch 700 bytes, type the same command again with --yes\n"
    for fact in (
        "judge.pth, 700 bytes",
        published.source,
        "licence: free",
        SHA256,
        "critic, score",
    ):
        assert fact in refused.stdout
    assert site.asked == []
    done = invoke("fetch", "judge", "--yes")
    assert done.exit_code == 0
    assert done.stdout.startswith(refused.stdout)
    assert len(site.asked) == 1


def test_a_fetched_file_is_where_the_plugin_looks(site: Site, published: PublishedFile) -> None:
    done = invoke("fetch", "critic")
    assert done.exit_code == 0, done.output
    path = weights_file("judge.pth")
    assert path.read_bytes() == CONTENT
    assert done.stdout.endswith(f"{path}: fetched, sha256 {SHA256}\n")
    assert json.loads(invoke("list", "--json").stdout)[0]["is_there"] is True
    again = invoke("fetch", "judge.pth")
    assert again.stdout == f"{path}: is there already\n"
    assert len(site.asked) == 1


def test_a_damaged_file_is_fetched_anew(site: Site, published: PublishedFile) -> None:
    path = weights_file("judge.pth")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged")
    assert invoke("fetch", "judge").exit_code == 0
    assert path.read_bytes() == CONTENT


def test_files_are_listed_with_size_licence_and_plugins(
    site: Site, published: PublishedFile
) -> None:
    listed = invoke("list").stdout
    assert re.search(r"^judge +700 bytes +- +critic, score\n +free$", listed, flags=re.MULTILINE)
    assert site.asked == []


def test_a_download_that_fails_says_so_in_one_line(site: Site, published: PublishedFile) -> None:
    site.content = CONTENT[::-1]
    failed = invoke("fetch", "judge")
    assert failed.exit_code == 1
    assert failed.stderr.startswith(f"{published.source}: what came is not the expected file")
    assert failed.stderr.count("\n") == 1
    assert not weights_file("judge.pth").exists()


def test_a_digest_that_nobody_states_is_noted_at_the_first_fetch_and_held_from_then_on(
    site: Site, published: PublishedFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    declare(monkeypatch, replace(published, sha256=""))
    first = invoke("fetch", "judge")
    assert "nobody states one; that of the first fetch is noted" in first.stdout
    notes = tmp_path / "state" / "fetched.json"
    assert json.loads(notes.read_text()) == {published.source: SHA256}
    weights_file("judge.pth").unlink()
    site.content = CONTENT[::-1]
    other = invoke("fetch", "judge")
    assert other.exit_code == 1
    assert f"should be {SHA256} (from its first fetch here" in other.stderr
    assert str(notes) in other.stderr
    notes.unlink()  # as the message says
    assert invoke("fetch", "judge").exit_code == 0


def test_a_name_that_nothing_has_is_refused_with_the_nearest(published: PublishedFile) -> None:
    wrong = invoke("fetch", "juge")
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("no weights are named 'juge'; did you mean 'judge'?")


def test_one_name_of_two_files_is_refused(
    site: Site, published: PublishedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(published, source=f"{site.address}/other.pth")
    monkeypatch.setattr(weights, "_by_plugin", lambda: {"a": (published,), "b": (other,)})
    weights.declared.cache_clear()
    assert "'judge' is the name of several files" in invoke("fetch", "judge").stderr
    assert invoke("fetch", "b").exit_code == 0
