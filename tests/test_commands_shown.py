"""The README, the lessons and the how-to pages do what they show: each command is run, in order.

A page is one script. It begins in a folder of a user who has photographs and two small runs, and
each of its blocks is run there: the commands of `sh`, and `python`. A block that begins with a
comment `# name.toml` or `# name.py` is written to this file. The lessons are one script together.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ganlab.cli import main
from ganlab.images.files import write_png
from ganlab.recipe import discovery

ROOT = Path(__file__).parents[1]
# a run of a second
SETTINGS = {"iterations": 4, "batch_size": 2, "evaluate_every": 4, "checkpoint_every": 2}
OPTIONS = {
    "builtin": "{ crop = 32, num_leaves = 2 }",
    "encoder_decoder": "{ width = 4 }",
    "patch_discriminator": "{ width = 4 }",
    "pretraining": "{ iterations = 2 }",
    "learning_rate_schedule": "{ over = 2 }",
}
SMALL = " ".join(f"--set '{key}={value}'" for key, value in (SETTINGS | OPTIONS).items())
OF_A_FOLDER = SMALL.replace("builtin={ crop = 32, num_leaves = 2 }", "image_folder.crop=32")
# what is added to a command that would take long: the first whose beginning fits
SHORTER = {
    r"run wgan_gp --data": OF_A_FOLDER,
    r"run sngan": f"{SMALL} --max-iterations 3",  # in the place of Ctrl-C
    r"run (recipes/)?(wgan_gp|seed)\b": SMALL,
    r"bench wgan_gp --vs": f"{SMALL} --time 0.1s",
    r"(check|trace|explain) (seed|r3gan|wgan_gp)\b": SMALL,
    r"ablate wgan_gp --without": f"{SMALL} --seeds 0..1 --vary gradient_penalty.weight=1",
    r"(compare|ablate|bisect) (wgan_gp|r3gan)\b": f"{SMALL} --seeds 0..1",
    r"resume \S+ --iterations": "--iterations 6 --max-iterations 5",
    r"(run|check) drifting\.toml": SMALL,
    r"ablate drifting\.toml": f"{SMALL} --seeds 0..1",
    r"sweep wgan_gp": SMALL,
    r"verify .*--iterations": "--iterations 2",
    r"dead-leaves": "--count 2",
}
# what is run instead of a command that names an iteration of a long run
INSTEAD = {"checkpoints runs/wgan_gp-1 2000": "checkpoints runs/wgan_gp-1 3"}
# the same for numbers of blocks of Python
IN_PYTHON = {"400": "4", "800": "6", "range(3)": "range(2)"}
# commands that may end with another code than 0: the runs are too small for a clear answer
CODES = {"ganlab bisect": {0, 1}}
# commands that are not run here, by their beginning, and what holds them
ELSEWHERE = {
    "uv run pytest": ".ci/run, to the letter",
    "pip install uv": ".ci/run",
    "pip install .": "test_bundled_recipes builds the wheel and unpacks it",
    "pip install pytest": "the tests have it",
    "python -m venv": "Python's own",
    "source ": "of the shell",
    "ganlab data fetch": "test_fetch_data, from a server on this machine",
    "ganlab data index": "test_data_pack: it needs shards of another tool",
    "ganlab weights fetch": "test_fetch_weights, from a server on this machine",
    "pip install 'ganlab[": "extras, from a package index",
    "hf auth login": "of the package huggingface_hub",
    "ganlab hub ": "test_hub, from a server on this machine",
    "ganlab upscale runs/NAME": "a run that `hub pull` made",
    "ganlab replay": "test_replay: the runs here have no iteration that was not finite",
    "ganlab upscale @last film": "test_upscale_video, where ffmpeg is",
    "echo 'eval": "test_completion",
    "ganlab completion fish >": "test_completion",
    "docker ": "test_container",
    "ganlab() {": "a function of the shell, for docker",
    "ganlab run wgan_gp --gpus": "test_ranks, on the CPU",
    "torchrun ": "test_ranks, on the CPU",
    "ganlab compare wgan_gp r3gan --seeds 0..4 --device cuda": "test_clusters",
    "ganlab ablate wgan_gp --seeds 0..2 --device cuda": "test_clusters",
    "ganlab compare wgan_gp r3gan --device cpu --executor ray": "test_clusters",
    "ganlab bench wgan_gp --fit": "test_bench: it tries batches until the memory is full",
}


def scripts() -> Iterator[tuple[str, list[Path]]]:
    """The scripts: a name, and the pages whose blocks it has."""
    yield "README", [ROOT / "README.md"]
    yield "tutorial", sorted((ROOT / "docs" / "tutorial").glob("[!i]*.md"))
    for page in sorted((ROOT / "docs" / "how-to").glob("*.md")):
        if "```sh" in page.read_text(encoding="utf-8"):
            yield page.stem, [page]


SCRIPTS = dict(scripts())


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each block of a page, in order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    return [(language, text) for language, text in found]


def commands(text: str) -> list[str]:
    """The commands of a block of the shell, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in lines]
    return [part.strip() for line in lines for part in line.split(" && ") if part.strip()]


def furnish(folder: Path, page: str) -> None:
    """Put into a folder what a page speaks of: photographs, images to score on, recipes, runs."""
    rng = torch.Generator().manual_seed(0)
    photos = ("photos/one", "photos/two", "photos/three", "photo")
    for name in (*photos, "Set5/bird", "data/Set5/bird", "upscaled/bird", "small/one"):
        image = torch.rand(1, 3, 12, 16, generator=rng)
        factor = 5 if not name.startswith("small") else 1.25  # a quarter of photos/
        image = torch.nn.functional.interpolate(image, scale_factor=factor, mode="bicubic")
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        write_png((image[0].clamp(0, 1) * 255).byte(), folder / f"{name}.png")
    (folder / "photo.png").rename(folder / "photo.jpg")
    recipes = shutil.copytree(ROOT / "recipes", folder / "recipes")
    (recipes / "wgan_gp.toml").rename(recipes / "whole.toml")
    lines = [f"{key} = {value}" for key, value in SETTINGS.items()]
    plugins = [f"{key} = {value}" for key, value in OPTIONS.items()]
    text = "\n".join(['extends = "whole.toml"', *lines, "[plugins]", *plugins])
    (recipes / "wgan_gp.toml").write_text(text)
    space = "trials = 2\n[options]\npixel_loss.weight = { float = [0.1, 1.0] }\n"
    (folder / "space.toml").write_text(space)
    (folder / "my_idea.toml").write_text('extends = "recipes/wgan_gp.toml"\n')
    if re.search(r"runs/wgan_gp-1|@last", page):
        assert invoke(f"run wgan_gp {SMALL} --max-iterations 3") == 0  # it can be resumed
    if "runs/r3gan-1" in page:
        assert invoke(f"run r3gan {SMALL}") == 0


def invoke(words: str) -> int:
    """The exit code of a command of ganlab in this process."""
    result = CliRunner().invoke(main, shlex.split(words), catch_exceptions=False)
    if result.exit_code:
        print(result.output)
    return result.exit_code


def in_small(words: str) -> str:
    """A command with what makes it short."""
    added = (more for beginning, more in SHORTER.items() if re.match(beginning, words))
    return f"{INSTEAD.get(words, words)} {next(added, '')}"


class Shell:
    """Runs the blocks of a page in a folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.monkeypatch = monkeypatch

    def block(self, language: str, text: str) -> None:
        if name := re.match(r"# ([\w./-]+\.(toml|py))\n", text):
            (self.folder / name[1]).write_text(text, encoding="utf-8")
        elif language == "python" and "push_to_hub" in text:
            return  # test_hub, as in ELSEWHERE
        elif language == "python" and re.match("import |from ", text, re.M):
            for long, short in IN_PYTHON.items():
                text = text.replace(long, short)
            exec(compile(text, "page", "exec"), {})
        elif language == "sh":
            for command in commands(text):
                self.run(command)

    def run(self, command: str) -> None:
        """Run one command; it must end well."""
        if command.startswith(tuple(ELSEWHERE)):
            return
        words = shlex.split(command)
        if words[:2] == ["uv", "run"]:
            words = words[2:]
        match words:
            case ["ganlab", *_]:
                code = invoke(in_small(command.partition("ganlab ")[2]))
                beginning = " ".join(words[:2])
                assert code in CODES.get(beginning, {0}), command
            case ["pytest", folder]:
                self._pytest(folder)
            case ["pip", "install", "--editable", folder]:
                self._install(self.folder / folder)
            case ["mkdir", folder]:
                (self.folder / folder).mkdir()
            case ["cd", folder]:
                photo, self.folder = self.folder / "photo.jpg", self.folder / folder
                shutil.copy(photo, self.folder)
                self.monkeypatch.chdir(self.folder)
            case _:
                raise AssertionError(f"neither run nor in ELSEWHERE: {command}")

    def _pytest(self, tests: str) -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout

    def _install(self, folder: Path) -> None:
        """Put the built distribution on the path of this process; the environment stays."""
        build = (
            "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
        )
        site = self.folder / "site"
        command = [sys.executable, "-c", build, str(site)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        shutil.unpack_archive(site / done.stdout.split()[-1], site, "zip")
        self.monkeypatch.syspath_prepend(site)
        forget_plugins()


def forget_plugins() -> None:
    """Let plugins be looked up anew."""
    discovery.offered.cache_clear()
    discovery.installed.cache_clear()


def test_the_tables_have_no_entry_that_no_page_needs() -> None:
    pages = [page for script in SCRIPTS.values() for page in script]
    shown = [c for page in pages for language, text in blocks(page) if language == "sh"
             for c in commands(text)]  # fmt: skip
    words = [command.partition("ganlab ")[2] for command in shown]
    assert len(words) > 50
    assert [entry for entry in ELSEWHERE if not any(c.startswith(entry) for c in shown)] == []
    assert [entry for entry in SHORTER if not any(re.match(entry, c) for c in words)] == []
    assert set(INSTEAD) <= set(words)


@pytest.mark.long  # small runs, a minute for all pages
@pytest.mark.usefixtures("small_photographs")
@pytest.mark.parametrize("script", SCRIPTS)
def test_all_that_a_page_shows_is_run_in_order(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    furnish(tmp_path, "".join(page.read_text(encoding="utf-8") for page in SCRIPTS[script]))
    shell = Shell(tmp_path, monkeypatch)
    try:
        for page in SCRIPTS[script]:
            for language, text in blocks(page):
                shell.block(language, text)
    finally:
        forget_plugins()
