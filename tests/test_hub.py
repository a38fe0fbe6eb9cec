"""`ganlab hub` and `api.Generator`, against a server of the Hub's requests on this machine."""

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import children
import pytest
import torch
from click.testing import CliRunner, Result
from pretended_hub import TOKEN, Hub, serving_hub
from safetensors.torch import load_file, save
from tiny import TINY

from ganlab import RecipeError, api
from ganlab.cli import main
from ganlab.commands.generator import load_for_use
from ganlab.recipe.trust import trusting_code
from ganlab.tensor_files import seal

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
pytest.importorskip("huggingface_hub")

# the library uploads in a way that its HTTP client calls old
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NETWORK = """\
from torch import nn

from ganlab import Plugin, hookimpl


class Own(Plugin):
    @hookimpl
    def make_generator(self, condition_shape, real_shape):
        return nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), nn.PixelShuffle(4))
"""


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def train(folder: Path, generator: str) -> Path:
    recipe = folder / "mine.toml"
    recipe.write_text(TINY.replace("encoder_decoder = { width = 4 }", generator))
    done = invoke("run", recipe, "--runs", folder / "runs", "--name", "mine")
    assert done.exit_code == 0, done.output
    return folder / "runs" / "mine"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose architecture other programs know."""
    return train(tmp_path_factory.mktemp("run"), "compact = { width = 4, num_layers = 1 }")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The server, the token for it, and a current folder for `runs/`."""
    from huggingface_hub import constants

    with serving_hub(Hub()) as hub:
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.chdir(tmp_path)
        yield hub


@pytest.fixture
def pushed(hub: Hub, run: Path) -> Hub:
    done = invoke("hub", "push", run, "lab/sr", "--yes")
    assert done.exit_code == 0, done.output
    return hub


def enlarged(network: torch.nn.Module) -> torch.Tensor:
    image = torch.rand(1, 3, 12, 9, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return network(image)


def original(run: Path) -> torch.Tensor:
    return enlarged(load_for_use(run, "last", "cpu")[1])


def left(folder: Path) -> list[str]:
    """What a command has left in the folder of runs."""
    return sorted(path.name for path in folder.glob("runs/*")) if folder.is_dir() else []


# --- push ----------------------------------------------------------------------------------------


def test_nothing_is_asked_of_the_server_before_consent(hub: Hub, run: Path) -> None:
    done = invoke("hub", "push", run, "lab/sr")
    assert done.exit_code == 2
    listed = [line.split(",")[0].strip() for line in done.stdout.splitlines()[1:]]
    assert listed == ["README.md", "config.json", "model.safetensors", "recipe.toml"]
    assert f"to {hub.address}/lab/sr (public if it is new):" in done.stdout
    assert done.stderr.rstrip().endswith("type the same command again with --yes")
    assert hub.asked == []


def test_what_was_pushed_and_pulled_is_equal_to_the_byte_and_enlarges_as_the_run(
    pushed: Hub, run: Path, tmp_path: Path
) -> None:
    files, commit = pushed.repositories["lab/sr"], pushed.commit("lab/sr")
    done = invoke("hub", "pull", "lab/sr")
    assert done.exit_code == 0, done.output
    assert f"from {pushed.address}/lab/sr, commit {commit}:" in done.stdout
    assert done.stderr.strip() == "next: ganlab upscale runs/sr IMAGE"
    pulled = tmp_path / "runs" / "sr"
    assert (pulled / "generator.safetensors").read_bytes() == files["model.safetensors"]
    assert (pulled / "recipe.toml").read_bytes() == files["recipe.toml"]
    assert (pulled / "README.md").read_bytes() == files["README.md"]
    kept = json.loads((pulled / "manifest.json").read_text())["pulled"]
    assert kept == {"from": f"{pushed.address}/lab/sr", "commit": commit}
    weights = load_file(run / "generator.safetensors")
    for name, value in load_file(pulled / "generator.safetensors").items():
        assert torch.equal(value, weights[name])
    assert torch.equal(original(pulled), original(run))
    assert left(tmp_path) == ["sr"]


def test_what_is_sent_names_no_folder_of_this_machine_and_the_token_is_not_shown(
    hub: Hub, run: Path
) -> None:
    done = invoke("hub", "push", run, "lab/sr", "--yes", "--license", "mit")
    assert TOKEN not in done.output
    assert {token for _, path, token in hub.asked if "/api/" in path} == {TOKEN}
    sent = hub.repositories["lab/sr"]
    assert b"mit" in sent["README.md"]
    for content in sent.values():
        assert str(run.parent.parent).encode() not in content
        assert TOKEN.encode() not in content


def test_private_is_private_and_is_refused_where_the_repository_is_public(
    hub: Hub, run: Path
) -> None:
    done = invoke("hub", "push", run, "lab/own", "--private", "--yes")
    assert (done.exit_code, hub.private) == (0, {"lab/own"})
    assert done.stdout.rstrip().endswith("lab/own, private")
    assert invoke("hub", "push", run, "lab/sr", "--yes").exit_code == 0
    before, asked = hub.commit("lab/sr"), len(hub.asked)
    done = invoke("hub", "push", run, "lab/sr", "--private", "--yes", "--license", "mit")
    assert done.exit_code == 1
    assert "it is there and public; --private is for a new one. Nothing was sent" in done.stderr
    assert hub.commit("lab/sr") == before
    assert not [path for _, path, _ in hub.asked[asked:] if "commit" in path or "put" in path]


def test_without_a_token_nothing_is_sent(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    done = invoke("hub", "push", run, "lab/sr", "--yes")
    assert done.exit_code == 2
    assert "`hf auth login` keeps one for you" in done.stderr
    assert hub.asked == []


def test_without_the_package_the_message_names_the_extra(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ganlab.hub.files.find_spec", lambda name: None)
    for command in (["push", run, "lab/sr"], ["pull", "lab/sr"]):
        done = invoke("hub", *command)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
        assert "pip install 'ganlab[hub]'" in done.stderr
    with pytest.raises(RecipeError, match=r"ganlab\[hub\]"):
        _ = api.Generator


# --- from Python ---------------------------------------------------------------------------------


def test_a_generator_that_was_saved_is_the_same_from_its_folder_and_from_the_hub(
    hub: Hub, run: Path, tmp_path: Path
) -> None:
    generator = api.Generator.of_run(run)
    generator.save_pretrained(tmp_path / "saved")
    generator.push_to_hub("lab/sr", private=True)
    saved = {file.name: file.read_bytes() for file in (tmp_path / "saved").iterdir()}
    assert saved == hub.repositories["lab/sr"]
    again = api.Generator.from_pretrained(tmp_path / "saved")
    there = api.Generator.from_pretrained("lab/sr", cache_dir=tmp_path / "cache")
    expected = original(run)
    assert torch.equal(enlarged(again), expected)
    assert torch.equal(enlarged(there), expected)
    assert (again.scale, there.scale) == (4, 4)
    assert not (generator.training or again.training or there.training)
    there.save_pretrained(tmp_path / "twice")
    assert {file.name: file.read_bytes() for file in (tmp_path / "twice").iterdir()} == saved


def test_other_programs_open_the_weights(pushed: Hub, run: Path, tmp_path: Path) -> None:
    spandrel = pytest.importorskip("spandrel")
    file = tmp_path / "model.safetensors"
    file.write_bytes(pushed.repositories["lab/sr"]["model.safetensors"])
    found = spandrel.ModelLoader().load_from_file(file)
    assert (found.architecture.id, found.scale) == ("Compact", 4)
    assert torch.allclose(enlarged(found.model), original(run), atol=1e-6)


# --- faults of the connection --------------------------------------------------------------------

FAULTS = {
    "401": ({"status": 401}, "token is missing or not accepted"),
    "403": ({"status": 403}, "needs the right to write"),
    "500": ({"status": 500}, "the server answers 500"),
    "cut": ({"cuts": True}, "closed connection"),
    "digest": ({"altered": "model.safetensors"}, "its digest differs"),
    "small": ({"altered": "config.json"}, "its digest differs"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_pull_that_fails_says_why_in_one_line_and_leaves_nothing(
    pushed: Hub, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    states, words = FAULTS[fault]
    vars(pushed).update(states)
    done = invoke("hub", "pull", "lab/sr")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1), done.output
    assert done.stderr.startswith(f"{pushed.address}/lab/sr: ")
    assert words in done.stderr
    assert left(tmp_path) == []


@pytest.mark.parametrize("fault", ["401", "403", "500"])
def test_a_push_that_fails_says_why_in_one_line(hub: Hub, run: Path, fault: str) -> None:
    states, words = FAULTS[fault]
    vars(hub).update(states)
    done = invoke("hub", "push", run, "lab/sr", "--yes")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1), done.output
    assert words in done.stderr


def test_what_is_not_there_is_told(pushed: Hub, tmp_path: Path) -> None:
    none = invoke("hub", "pull", "lab/none")
    revision = invoke("hub", "pull", "lab/sr", "--revision", "v2")
    assert (none.exit_code, revision.exit_code) == (1, 1)
    assert "404: there is no such repository" in none.stderr
    assert "404: there is no such revision" in revision.stderr
    assert left(tmp_path) == []


def test_no_connection_is_told_in_one_line(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody there
    for command in (["push", run, "lab/sr", "--yes"], ["pull", "lab/sr"]):
        done = invoke("hub", *command)
        assert (done.exit_code, done.stderr.count("\n")) == (1, 1), done.output
        assert "no connection: " in done.stderr


def test_a_pull_in_a_process_of_its_own_asks_the_server_of_the_environment(
    pushed: Hub, tmp_path: Path
) -> None:
    done = children.run("hub", "pull", "lab/sr", cwd=tmp_path, HF_ENDPOINT=f"{pushed.address}/")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"from {pushed.address}/lab/sr, commit ")
    assert (tmp_path / "runs" / "sr" / "generator.safetensors").is_file()


@pytest.mark.parametrize("name", ["sr", "lab/", "lab/../sr", "a/b/c", "lab/s r", "é/sr"])
def test_a_name_that_is_no_repository_is_refused(hub: Hub, name: str) -> None:
    done = invoke("hub", "pull", name)
    assert done.exit_code == 2
    assert "give USER/NAME" in done.stderr
    assert hub.asked == []


# --- what a stranger may have put there ----------------------------------------------------------


def test_only_known_files_are_fetched_and_a_run_that_is_there_stays(
    pushed: Hub, tmp_path: Path
) -> None:
    files = pushed.repositories["lab/sr"]
    files |= {"pytorch_model.bin": b"x", "sub/config.json": b"{}", "a\x1b[2J.txt": b"x"}
    done = invoke("hub", "pull", "lab/sr")
    assert done.exit_code == 0, done.output
    assert "not fetched: pytorch_model.bin, sub/config.json, a\\x1b[2J.txt" in done.stdout
    paths = [path for method, path, _ in pushed.asked if "/resolve/" in path]
    commits = {path.partition("/resolve/")[2].partition("/")[0] for path in paths}
    assert commits == {json.loads(Path("runs/sr/manifest.json").read_text())["pulled"]["commit"]}
    fetched = {path.rpartition("/")[2] for method, path, _ in pushed.asked
               if method == "GET" and "/resolve/" in path}  # fmt: skip
    assert fetched == {"README.md", "config.json", "model.safetensors", "recipe.toml"}
    asked = len(pushed.asked)
    again = invoke("hub", "pull", "lab/sr")
    assert again.exit_code == 2
    assert f"{Path('runs') / 'sr'} exists" in again.stderr
    assert len(pushed.asked) == asked


def unsealed(content: bytes) -> bytes:
    """The same weights without the digest that ganlab writes."""
    size = struct.unpack("<Q", content[:8])[0]
    head = json.loads(content[8 : 8 + size])
    del head["__metadata__"]
    new = json.dumps(head).encode()
    return struct.pack("<Q", len(new)) + new + content[8 + size :]


ODD = {
    "nothing but weights": ({"recipe.toml": None}, "it lacks recipe.toml"),
    "a config that is none": ({"config.json": b"[]"}, "config.json: "),
    "a shape that is none": (
        {"config.json": lambda old: old.replace(b"[\n    3,", b"[\n    -3,")},
        "config.json: condition_shape",
    ),
    "a number that is a text": (
        {"config.json": lambda old: old.replace(b'"scale": 4', b'"scale": "4"')},
        "config.json: scale",
    ),
    "a recipe that is none": ({"recipe.toml": b"iterations = "}, "recipe.toml: "),
    "a path as a plugin": (
        {"recipe.toml": b'iterations = 1\n[plugins]\n"../x" = { use = "./x.py" }\n'},
        "no file may have this name",
    ),
    "weights that are none": ({"model.safetensors": b"\x80\x04."}, "model.safetensors: "),
    "weights without a digest": ({"model.safetensors": unsealed}, "its digest is missing"),
    "weights that are not finite": (
        {"model.safetensors": save({"a": torch.tensor([torch.nan])},
                                   seal({"a": torch.tensor([torch.nan])}, {"iteration": 1}))},
        "a number that is not finite",
    ),
    "a recipe that is too large": ({"recipe.toml": b"#" * 2**21}, "bytes; at most"),
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_repository_is_refused_whole(pushed: Hub, odd: str, tmp_path: Path) -> None:
    changes, words = ODD[odd]
    files = pushed.repositories["lab/sr"]
    for name, content in changes.items():
        if content is None:
            del files[name]
        else:
            files[name] = content(files[name]) if callable(content) else content
    done = invoke("hub", "pull", "lab/sr")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1), done.output
    assert words in done.stderr
    assert left(tmp_path) == []


def test_a_large_repository_is_fetched_after_consent_alone(
    pushed: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ganlab.commands.fetch.LARGE", 1000)
    done = invoke("hub", "pull", "lab/sr")
    assert done.exit_code == 2
    assert "type the same command again with --yes" in done.stderr
    assert left(tmp_path) == []
    assert invoke("hub", "pull", "lab/sr", "--yes").exit_code == 0


def test_pulled_code_runs_only_after_consent(
    hub: Hub, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.py").write_text(NETWORK)
    run = train(folder, 'own = { use = "./own.py" }')
    assert invoke("hub", "push", run, "lab/own", "--yes").exit_code == 0
    assert hub.repositories["lab/own"]["own.py"] == NETWORK.encode()
    config = hub.repositories["lab/own"]["config.json"]
    consent = b'{"trust_code": true, "device": "cpu", '
    hub.repositories["lab/own"]["config.json"] = consent + config.lstrip()[1:]
    strange = NETWORK.replace("class Own", "raise SystemExit(7)\n\n\nclass Own").encode()
    hub.repositories["lab/own"]["own.py"] = strange
    done = invoke("hub", "pull", "lab/own")
    assert done.exit_code == 0, done.output
    assert "own.py: code of a stranger. It runs only after consent" in done.stdout
    with pytest.raises(RecipeError, match="--trust-code"):
        load_for_use(Path("runs/own"), "last", "cpu")
    with pytest.raises(RecipeError, match="--trust-code"):
        api.Generator.from_pretrained("lab/own", cache_dir=tmp_path / "cache")
    with trusting_code(), pytest.raises(RecipeError, match="SystemExit: 7"):
        load_for_use(Path("runs/own"), "last", "cpu")


def test_a_pulled_run_is_not_resumed_over_its_weights(pushed: Hub, tmp_path: Path) -> None:
    assert invoke("hub", "pull", "lab/sr").exit_code == 0
    before = {file.name: file.read_bytes() for file in (tmp_path / "runs" / "sr").iterdir()}
    for more in ([], ["--iterations", "9"]):
        done = invoke("resume", "runs/sr", *more)
        assert done.exit_code == 2
        assert "it was pulled, so it has no checkpoints" in done.stderr
    after = {file.name: file.read_bytes() for file in (tmp_path / "runs" / "sr").iterdir()}
    assert {name: after[name] for name in before} == before
