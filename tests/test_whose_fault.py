"""What a plugin raises, wherever it raises it, is one message that names it; the run can go on."""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from pluggy import PluginManager
from tiny import TINY

from ganlab import Plugin, hookimpl, hookspecs
from ganlab.cli import main
from ganlab.commands import describe
from ganlab.commands.describe import HOOKS
from ganlab.images.files import write_png
from ganlab.monitoring.blame import blame
from ganlab.recipe import discovery

FAULTY = '''\
import sys
import warnings
from pathlib import Path

import torch
from ganlab import Plugin, hookimpl

WHERE = Path("where")


class OwnError(Exception):
    """An error of the plugin's own."""


class MuteError(Exception):
    """An error whose text cannot be made."""

    def __str__(self):
        raise ValueError("no text")


def deep(number=0):
    return deep(number + 1)


def many():
    raise ExceptionGroup("two faults", [KeyError("alpha"), OSError(5, "beta")])


def throw(error):
    raise error


FAULTS = {
    "KeyError": lambda: {}["alpha"],
    "OwnError": lambda: throw(OwnError("alpha")),
    "SystemExit": lambda: sys.exit(0),
    "AssertionError": lambda: torch.testing.assert_close(1, 2),
    "RuntimeError": lambda: torch.zeros(2, 3) @ torch.zeros(2, 3),
    "RecursionError": deep,
    "KeyboardInterrupt": lambda: throw(KeyboardInterrupt()),
    "GeneratorExit": lambda: throw(GeneratorExit()),
    "StopIteration": lambda: next(iter([])),
    "MuteError": lambda: throw(MuteError()),
    "ExceptionGroup": many,
    "UserWarning": lambda: warnings.warn("careful"),
    "MemoryError": lambda: throw(MemoryError()),
    "OutOfMemoryError": lambda: throw(torch.OutOfMemoryError("CUDA out of memory.")),
    "FileNotFoundError": lambda: Path("absent").read_text(),
}


def fail(plugin, hook):
    place, kind, begins = WHERE.read_text().split()
    now = plugin._run.iteration if plugin._run else 0
    if hook == place and now >= int(begins):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            FAULTS[kind]()


class Through(torch.autograd.Function):
    @staticmethod
    def forward(context, value, plugin):
        context.plugin = plugin
        return value.clone()

    @staticmethod
    def backward(context, gradient):
        fail(context.plugin, "backward")
        return gradient, None


class Net(torch.nn.Sequential):
    def forward(self, images):
        fail(self.plugin[0], "forward")
        return super().forward(images)


class Sgd(torch.optim.SGD):
    def step(self, closure=None):
        fail(self.plugin, "optimizer")
        return super().step(closure)


class Faulty(Plugin):
    """Fails in the hook that the file `where` names, when the run has come so far."""

    _run: object = None

    def model_post_init(self, context):
        super().model_post_init(context)
        fail(self, "__init__")

    @hookimpl
    def check_recipe(self, run):
        fail(self, "check_recipe")
        self._run = run

    @hookimpl
    def evaluation_images(self):
        fail(self, "evaluation_images")
        return {"a": torch.arange(3 * 24 * 24, dtype=torch.uint8).view(3, 24, 24)}

    @hookimpl
    def make_generator(self, condition_shape, real_shape):
        fail(self, "make_generator")
        net = Net(torch.nn.Conv2d(3, 48, 3, padding=1), torch.nn.PixelShuffle(4))
        net.plugin = (self,)
        return net

    @hookimpl
    def make_optimizer(self, module, role):
        fail(self, "make_optimizer")
        made = Sgd(module.parameters(), lr=1e-3)
        made.plugin = self
        return made

    @hookimpl
    def generator_loss(self, fake):
        fail(self, "generator_loss")
        return {"G/faulty": 0 * Through.apply(fake.mean(), self)}

    @hookimpl
    def penalty(self, fake):
        fail(self, "penalty")
        return {}

    @hookimpl
    def iteration_end(self, run, losses):
        fail(self, "iteration_end")

    def state_dict(self):
        fail(self, "state_dict")
        return {}

    def load_state_dict(self, state):
        fail(self, "load_state_dict")
'''
WRITTEN = ("check_recipe", "evaluation_images", "make_generator", "make_optimizer",
           "generator_loss", "penalty", "iteration_end")  # fmt: skip
WRAPPERS = "".join(
    f'\n    @hookimpl(wrapper=True)\n    def {hook}(self):\n        fail(self, "{hook}")\n'
    "        return (yield)\n" for hook in HOOKS if hook not in WRITTEN
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "faulty.py").write_text(FAULTY + WRAPPERS)
    gone = ("encoder_decoder", "wasserstein", "gradient_penalty")
    lines = [line for line in [*TINY.splitlines(), "bce = {}"] if not line.startswith(gone)]
    text = "\n".join(lines).replace("evaluate_every = 100\ncheckpoint_every = 2",
                                    "evaluate_every = 1\ncheckpoint_every = 1")  # fmt: skip
    (folder / "t.toml").write_text(f'{text}\nidea = {{ use = "./faulty.py" }}\n')
    (folder / "u.toml").write_text('extends = "t.toml"\nbatch_size = 1\n')
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(folder)
    yield folder


def ganlab(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


EARLY = {"check_recipe", "evaluation_images", "make_generator", "make_discriminator",
         "make_optimizer", "sample_real", "degrade", "sample_batch", "augment", "data_digest",
         "run_start", "__init__", "forward"}  # fmt: skip
KINDS = ("KeyError", "OwnError", "SystemExit", "AssertionError", "RuntimeError", "RecursionError",
         "KeyboardInterrupt", "GeneratorExit", "StopIteration", "MuteError", "ExceptionGroup",
         "UserWarning", "MemoryError", "OutOfMemoryError", "FileNotFoundError")  # fmt: skip
LACKING = ("MemoryError", "OutOfMemoryError")
PLACES = [*HOOKS, "__init__", "state_dict", "forward", "backward", "optimizer"]
ASKED = [*range(len(PLACES))]
ASKED.remove(PLACES.index("samples_drawn"))  # which is only for numbers that are not finite


TOLD = {
    "SystemExit": "SystemExit: 0",
    "KeyError": "KeyError: 'alpha'",
    "OwnError": "OwnError: alpha",
    "MuteError": "MuteError: (its text cannot be made)",
    "ExceptionGroup": "two faults (2 sub-exceptions): KeyError: 'alpha'; OSError: [Errno 5] beta",
}
# what the message says where the plugin's code is no hook
IN = {"forward": "make_generator", "optimizer": "make_optimizer",
      "backward": "Through.backward", "__init__": "fails when it is made"}  # fmt: skip


def fault(place: str, kind: str, since: int) -> None:
    Path("where").write_text(f"{place} {kind} {since}")


@pytest.mark.parametrize("number", ASKED, ids=PLACES.__getitem__)
def test_plugin_hook_iteration_line_and_error_are_told_and_nothing_is_lost(
    here: Path, number: int
) -> None:
    place, kind = PLACES[number], KINDS[number % len(KINDS)]
    fault(place, kind, since=0 if place in EARLY else 1)
    result = ganlab("run", "t.toml", "--name", f"run{number}")
    assert result.exit_code == 1, result.stderr
    assert "Traceback" not in result.stderr
    about = [line for line in result.stderr.splitlines() if "plugin idea (faulty.py)" in line]
    assert len(about) == 1, result.stderr
    words = TOLD.get(kind, kind if kind not in LACKING else "out of memory")
    assert words in about[0] and IN.get(place, place) in about[0]
    assert re.search(r"\bfaulty\.py:\d+: \S+", result.stderr)  # the line, and where it stands
    if place == "__init__":
        return
    assert "iteration" in about[0]
    run = here / "runs" / f"run{number}"
    if place in EARLY:
        assert not run.exists()
        return
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 1)
    goes_on = result.stderr.splitlines()[-1]
    assert (
        goes_on.startswith("this run goes on from ")
        and f"ganlab resume runs/run{number}" in goes_on
    )


def test_a_run_that_a_plugin_has_ended_goes_on_as_if_it_had_not(here: Path) -> None:
    fault("nowhere", "KeyError", since=0)
    assert ganlab("run", "t.toml", "--name", "whole").exit_code == 0
    fault("iteration_end", "KeyError", since=2)
    assert ganlab("run", "t.toml", "--name", "cut").exit_code == 1
    fault("load_state_dict", "OwnError", since=0)
    again = ganlab("resume", "runs/cut")
    assert again.exit_code == 1
    assert (
        "plugin idea (runs/cut/idea.py) fails in its load_state_dict (throw): OwnError"
        in again.stderr
    )
    fault("nowhere", "KeyError", since=0)
    assert ganlab("resume", "runs/cut").exit_code == 0
    for name in ("stats.jsonl", "generator.safetensors"):
        whole, cut = (here / "runs" / run / name for run in ("whole", "cut"))
        assert whole.read_bytes() == cut.read_bytes()


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("generator_loss", ["check", "t.toml"]),
        ("penalty", ["trace", "t.toml"]),
        ("degrade", ["bench", "t.toml"]),
        ("iteration_start", ["explain", "t.toml"]),
        ("score_images", ["eval", "runs/used", "--data", "photos"]),
        ("forward", ["upscale", "runs/used", "photos/a.png", "-o", "large"]),
        ("make_generator", ["run", "t.toml", "--dry-run"]),
        ("augment", ["compare", "t.toml", "u.toml", "--seeds", "0..1", "--runs", "others"]),
    ],
)
def test_every_command_tells_it(here: Path, place: str, words: list[str]) -> None:
    if not Path("runs/used").exists():
        fault("nowhere", "KeyError", since=0)
        Path("photos").mkdir()
        write_png(torch.randint(0, 256, (3, 24, 24), dtype=torch.uint8), Path("photos/a.png"))
        assert ganlab("run", "t.toml", "--name", "used").exit_code == 0
    fault(place, "SystemExit", since=0)
    result = ganlab(*words)
    assert result.exit_code == 1, result.output
    last = result.stderr.strip().splitlines()[-1]
    assert "plugin idea (" in last and f"{IN.get(place, place)}" in last, result.stderr
    assert "Traceback" not in result.stderr


def test_the_traceback_is_shown_when_asked_for_before_or_after_the_command(here: Path) -> None:
    fault("run_start", "KeyError", since=0)
    for words in (["--traceback", "run", "t.toml"], ["run", "t.toml", "--traceback"]):
        result = ganlab(*words)
        assert result.exit_code == 1
        assert "Traceback" in result.stderr and 'lambda: {}["alpha"]' in result.stderr
        assert "fails in its run_start" in result.stderr.splitlines()[-1]


def test_ctrl_c_is_nobodys_fault(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault("nowhere", "KeyError", since=0)

    read = Path.read_text

    def press(file: Path, **options: str) -> str:  # what a signal does while plugin code runs
        if file.name == "where":
            signal.raise_signal(signal.SIGINT)
        return read(file, **options)

    monkeypatch.setattr(Path, "read_text", press)
    result = ganlab("run", "t.toml", "--dry-run")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, "stopped by SIGINT")


class Outer(Plugin):
    @hookimpl(wrapper=True)
    def degrade(self, images):
        return (yield)


class Inner(Plugin):
    @hookimpl(wrapper=True)
    def degrade(self, images):
        answer = yield
        raise KeyError(answer)


class Base:
    @hookimpl
    def degrade(self, images):
        return [len(images)]


def test_an_error_that_passes_through_a_wrapper_is_not_the_wrappers() -> None:
    manager = PluginManager("ganlab")
    manager.add_hookspecs(hookspecs)
    for plugin in (Base(), Inner(), Outer()):
        manager.register(plugin)
    with pytest.raises(TypeError) as of_the_base:
        manager.hook.degrade(images=None)
    assert blame(of_the_base.value) is None
    with pytest.raises(KeyError) as of_a_wrapper:
        manager.hook.degrade(images=[])
    found = blame(of_a_wrapper.value)
    assert found and (found.plugin.name, found.hook, found.asked) == ("inner", "degrade", "")


def test_an_error_of_ganlabs_own_code_says_so_with_its_traceback(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault("nowhere", "KeyError", since=0)
    monkeypatch.setattr("ganlab.session.announce", lambda *given: {}["beta"])
    result = ganlab("run", "t.toml", "--name", "ours")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr and "KeyError: 'beta'" in result.stderr
    assert "this is a fault of ganlab itself" in result.stderr
    assert "ganlab doctor" in result.stderr.splitlines()[-1]


BROKEN = {
    "broken_syntax": "class Broken(:\n",
    "broken_library": "import a_library_that_is_not_installed\n",
    "broken_exit": "raise SystemExit(0)\n",
    "broken_binary": "raise ImportError('libodd.so.1: cannot open shared object file')\n",
    "broken_class": "Broken = 3\n",
    "broken_default": "from pydantic import Field\nfrom ganlab import Plugin\n\n\n"
    "class Broken(Plugin):\n    x: int = Field(default_factory=lambda: {}['alpha'])\n",
}


@pytest.fixture
def strange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed distribution all of whose plugins are broken, and one with damaged metadata."""
    about = tmp_path / "acme-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.2\n")
    points = "".join(f"{name} = {name}:Broken\n" for name in BROKEN)
    (about / "entry_points.txt").write_text(f"[ganlab]\n{points}r1 = broken_syntax:Broken\n")
    for name, code in BROKEN.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    caches = (discovery.installed, discovery.offered, discovery.clashes, describe.broken_plugins)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


def test_broken_plugins_are_named_and_hide_no_others(strange: Path, tiny: Path) -> None:
    listed = ganlab("plugins")
    assert listed.exit_code == 0, listed.output
    assert "gradient_penalty" in listed.stdout and "Traceback" not in listed.output
    lines = [line for line in listed.stderr.splitlines() if line.startswith("left out: ")]
    for name in BROKEN:
        (line,) = [line for line in lines if f"'{name}' of acme 1.2" in line]
        assert len(line) < 300
    assert any("'r1': acme and ganlab" in line or "'r1': ganlab and acme" in line for line in lines)
    fine = ganlab("run", tiny, "--dry-run")
    assert fine.exit_code == 0, fine.output
    for name in BROKEN:
        used = ganlab("run", tiny, "--set", f"{name}={{}}", "--dry-run")
        last = used.stderr.splitlines()[-1]
        assert used.exit_code in (1, 2) and name in last and "acme 1.2" in last, used.output
        assert "Traceback" not in used.stderr


def test_one_distribution_with_damaged_metadata_stops_no_command(strange: Path) -> None:
    (strange / "acme-1.2.dist-info" / "entry_points.txt").write_text("[ganlab]\nnonsense\n")
    discovery.offered.cache_clear()
    listed = ganlab("plugins")
    assert listed.exit_code == 0 and "gradient_penalty" in listed.stdout, listed.output
    assert "the entry points of acme cannot be read" in listed.stderr
