"""Quicker ways to take a step give the step, and what cannot be quicker is named.

CUDA graphs are tried with a recorder for the CPU that freezes what capture would freeze; the tests
marked `cuda` capture real ones.
"""

import json
import shutil
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_shipped_recipes import RECIPES, ROOT, photographs, small  # noqa: F401

from ganlab.assembly import assemble, choose_execution
from ganlab.checkpoint import load_checkpoint, write_checkpoint
from ganlab.iteration import iterate
from ganlab.monitoring.blame import blame
from ganlab.plugin import Plugin
from ganlab.recipe.file import read_recipe
from ganlab.recipe.model import load_recipe
from ganlab.run import Eager, Run
from ganlab.speed import trial
from ganlab.speed.compiled import Compiled
from ganlab.speed.device import release_memory
from ganlab.speed.graphs import WARM_UPS, CudaRecorder, Graphs
from ganlab.speed.trial import TOLERANCE, Snapshot
from ganlab.state import state_of
from ganlab.testing.recorder import CpuRecorder

pytestmark = [
    # of torch's own compiler
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch"),
    pytest.mark.usefixtures("seeded_weights", "small_photographs"),
]

CPU = torch.device("cpu")
GAME = """\
iterations = 20
batch_size = 4
watch_every = 7

[plugins]
dead_leaves = { crop = 16, num_images = 2, size = 32 }
bicubic = { scale = 4 }
encoder_decoder = { width = 4 }
patch_discriminator = { width = 4, num_layers = 2, norm = "batch" }
bce = { weight = 0.1 }
pixel_loss = { weight = 1.0 }
"""
# or Adam makes whole steps of the rounding of a gradient that is 0
SMOOTH = "adam={ eps = 1e-3 }"
ALONE = ["patch_discriminator.norm=none"]
COMPILE = "compile=networks"
GAMES = {
    "bce": [],
    "generator first": ["first=generator"],
    "not shared": ["first=generator", "share_forward=false"],
    "penalty": [*ALONE, "gradient_penalty={}"],
    "penalty, shared": [*ALONE, "first=generator", "gradient_penalty={}"],
    "lazy penalty": [*ALONE, "r1={ every = 2 }"],
    "lazy penalty, shared": [*ALONE, "first=generator", "r1={ every = 2 }"],
    "schedule": ["instance_noise={ sigma = { from = 0.1, to = 0, over = 5 } }"],
    "learning rate": ["learning_rate_schedule={ kind = 'linear', over = 10 }", "ema={}"],
    "augmentations": ["ada={ initial_p = 0.5 }", "first=generator"],
    "pseudo-real": ["apa={ initial_p = 0.3 }"],
    "running means": ["lecam={ start = 2 }"],
    "pretraining": ["pretraining={ iterations = 6 }", "first=generator"],
    "relativistic": ["bce=false", "relativistic_average={}", "first=generator"],
    "features": ["feature_matching={}"],
    "conditional": ["conditional_discriminator={}", "first=generator"],
    "spectral norm": [*ALONE, "spectral_norm={}", "first=generator"],
    "gradient clipping": [
        *ALONE,
        "gradient_clipping={ generator = 0.01, discriminator = 0.01 }",
        "r1={ every = 2 }",
        "accumulate=2",
    ],
    "freezing": ["freeze={ discriminator_layers = 1, generator = ['up'], until = 6 }"],
    "parts": ["accumulate=2", "first=generator"],
    "several steps": ["d_steps=2", "g_steps=2"],
    "two discriminators": [
        "num_discriminators=2",
        'coarse={ use = "patch_discriminator", width = 4, num_layers = 1, downsample = 2 }',
        "first=generator",
    ],
}
WAYS: dict[str, Callable[[], Eager]] = {
    "graphs": lambda: Graphs(CpuRecorder()),
    "networks": lambda: Compiled("aot_eager"),
}


@pytest.fixture(autouse=True)
def _nothing_compiled_yet() -> Iterator[None]:
    yield
    if "torch._dynamo" in __import__("sys").modules:
        torch._dynamo.reset()


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Run]:
    def build(*overrides: str, way: Eager | None = None, code: str = "", base: str = "") -> Run:
        file = tmp_path / "game.toml"
        file.write_text(GAME)
        if code:
            base_class = HEAD.replace("class Idea", f"{base}class Idea")
            (tmp_path / "idea.py").write_text(base_class + code)
            overrides = ('idea={ use = "./idea.py" }', *overrides)
        run = assemble(load_recipe(file, overrides), CPU)
        run.execution = way or Eager()
        run.notes.clear()
        return run

    return build


def train(run: Run, iterations: int = 12) -> list[dict[str, float]]:
    lines = []
    with run.execution.running():
        for run.iteration in range(iterations):
            lines.append({name: value.item() for name, value in iterate(run).items()})
    return lines


def states(run: Run) -> list[torch.Tensor]:
    networks = [network for network in (run.G, run.D) if network is not None]
    return [tensor for network in networks for tensor in network.state_dict().values()]


def assert_same(way: str, one: Run, other: Run, lines: list[list[dict[str, float]]]) -> None:
    """Weights and logged values: to the last bit when replayed on a CPU, else to rounding."""
    if way == "graphs":
        assert all(map(torch.equal, states(one), states(other)))
        assert lines[0] == lines[1]
        return
    mine, theirs = (torch.cat([t.double().flatten() for t in states(run)]) for run in (one, other))
    assert (mine - theirs).norm() < 2e-6 * mine.norm()
    for a, b in zip(*lines, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=3e-5)


def ways(names: Iterable[str], compiled: Collection[str], slow: Collection[str] = ()) -> list[Any]:
    """Every name in every way. Long tests: compiling, 2 s each, and `slow` ones."""
    return [
        pytest.param(
            name,
            way,
            id=f"{name}-{way}",
            marks=[pytest.mark.long]
            if name in slow or (way == "networks" and name not in compiled)
            else [],
        )
        for name in names
        for way in WAYS
    ]


# what concerns compiled networks: shared passes, hooks on layers, second derivatives; 1 to 8 s each
COMPILED = ("bce", "penalty, shared", "features", "spectral norm", "two discriminators")
# of an update that is taken each second time, or not before iteration 6
LATE = ("lazy penalty", "lazy penalty, shared", "gradient clipping", "pretraining", "freezing")


@pytest.mark.parametrize(("game", "way"), ways(GAMES, COMPILED))
def test_a_quicker_way_is_the_same_way(build, game: str, way: str) -> None:
    overrides = [SMOOTH, *GAMES[game], f"watch_every={7 if game in LATE else 3}"]
    plain, quick = build(*overrides), build(*overrides, way=WAYS[way]())
    # of graphs also: two that were compared later, and a watched step that is replayed
    count = {"graphs": (12, 18), "networks": (6, 12)}[way][game in LATE]
    lines = [train(plain, count), train(quick, count)]
    assert quick.notes == []
    assert_same(way, plain, quick, lines)


NAMES = [file.relative_to(ROOT / "recipes").as_posix() for file in RECIPES]


SLOW = [f"div2k/{name}.toml" for name in ("bsrgan", "real_esrgan", "esrgan", "ldl")]
# 1 to 3 s each, and as others but for the network or the size
SLOW += [f"div2k/{name}.toml" for name in ("edsr", "rrdb", "wgan_gp")]
SLOW += ["bce_gan.toml", "toy/grid_r3gan.toml", "toy/ring_gan.toml", "toy/ring_wgan_gp.toml"]


@pytest.mark.parametrize(
    ("name", "way"), ways(NAMES, ("wgan_gp.toml", "toy/ring_r3gan.toml"), SLOW)
)
def test_a_recipe_trains_alike_in_every_way(
    name: str, way: str, photographs: Path  # noqa: F811
) -> None:  # fmt: skip
    recipe = ROOT / "recipes" / name
    changes = small(recipe, photographs)[1::2]  # without the --set
    if "adam" in read_recipe(recipe).values["plugins"]:
        changes.append("adam.eps=1e-3")  # as in SMOOTH
    lines, runs = [], []
    for quick in (Eager(), WAYS[way]()):
        run = assemble(load_recipe(recipe, [*changes, "watch_every=0"]), CPU)
        run.execution = quick
        run.notes.clear()
        runs.append(run)
        lines.append([])
        with run.execution.running():
            # before the game, where there is such a time, and in it; few, for a game amplifies
            count = WARM_UPS + 2 if way == "graphs" else 2
            for first in (0, run.recipe.iterations - count):
                for run.iteration in range(first, first + count):
                    lines[-1].append({n: v.item() for n, v in iterate(run).items()})
    assert all("SGD has no capturable form" in note for run in runs for note in run.notes)
    # the second part begins after a planned comparison, which is caught up on
    replayed = [line.pop(f"replay/{role}", 0) for line in lines[1] for role in "GD"]
    assert replayed == [0] * len(replayed)
    assert_same(way, *runs, lines)


def test_a_replay_calls_no_plugin(build) -> None:
    run = build("watch_every=0", way=Graphs(CpuRecorder()), code=COUNTS)
    train(run, 6)
    # the trial, the capture, and the comparison in the next iteration
    assert run.recipe.plugins["idea"]._calls == WARM_UPS + 3


@pytest.fixture
def often_compared(monkeypatch) -> None:
    """A comparison is planned in each 10th watched iteration, which is enough to see one."""
    monkeypatch.setattr("ganlab.run.AS_WRITTEN_EVERY", 10)


@pytest.mark.usefixtures("often_compared")
def test_watched_steps_are_replayed_too_and_tell_the_same(build) -> None:
    # to the planned comparison, and 1 iteration after it
    plain = build("watch_every=2", code=COUNTS)
    quick = build("watch_every=2", way=Graphs(CpuRecorder()), code=COUNTS)
    lines = [train(plain, 21), train(quick, 21)]
    replayed = {number: line.pop("replay/G", None) for number, line in enumerate(lines[1])}
    assert {number: far for number, far in replayed.items() if far is not None} == {19: 0.0}
    assert [line.pop("replay/D", None) for line in lines[1]] == [*replayed.values()]
    assert_same("graphs", plain, quick, lines)
    watched = [number for number, line in enumerate(lines[1]) if "gradient/G/idea" in line]
    assert watched == sorted({1, 2, 4, 8, 16} | {*range(1, 21, 2)})
    plainly, captured, compared = [0, 6, 10, 1, 2, 3, 4], [12, 5], [14, 7, 8, 16, 19]
    calls = len(plainly) + 2 * len(captured) + len(compared)
    assert quick.recipe.plugins["idea"]._calls == calls


def test_a_captured_run_warns_of_a_broken_invariant_and_of_nothing_else(build) -> None:
    run = build("watch_every=1", way=Graphs(CpuRecorder()), code=MEDDLES)
    train(run, 9)
    assert [note.partition("; ")[0] for note in run.notes] == [
        "warning: the weights of D change in the step of G, seen in iteration 2"
    ]


HEAD = """\
from typing import ClassVar
from ganlab import Plugin, hookimpl
from pydantic import PrivateAttr
import torch
import weakref


class Idea(Plugin):
    \"\"\"An idea.\"\"\"

"""
COUNTS = """\
    _calls: int = PrivateAttr(0)

    @hookimpl
    def generator_loss(self, fake):
        self._calls += 1
        return {"G/idea": 0.1 * fake.square().mean()}
"""
MEDDLES = """\
    @hookimpl
    def generator_loss(self, fake_logits):
        with torch.no_grad():
            [*self._D.parameters()][-1].mul_(1.0)
        return {"G/idea": 0 * fake_logits.sum()}

    _D: torch.nn.Module = PrivateAttr(None)

    @hookimpl
    def run_start(self, run):
        self._D = run.D
"""
FREEZES = """\
    _number: float = PrivateAttr(0.0)

    @hookimpl
    def iteration_start(self, run):
        self._number = 5.0 * (run.iteration % 2) * (run.iteration >= BEGIN)

    @hookimpl
    def HOOK
        return {"IDEA": 0.1 * (1 + self._number) * IMAGES.square().mean()}
"""
OF_G = (
    FREEZES.replace("HOOK", "generator_loss(self, fake):")
    .replace("IMAGES", "fake")
    .replace("IDEA", "G/idea")
)
OF_D = (
    FREEZES.replace("HOOK", "penalty(self, real_logits):")
    .replace("IMAGES", "real_logits")
    .replace("IDEA", "D/idea")
)
LAZILY = """\
    _number: float = PrivateAttr(0.0)
    every: int = 3

    @hookimpl
    def iteration_start(self, run):
        self._number = float(run.iteration)

    def term(self, discriminator, real, fake):
        return 0.1 * self._number * discriminator(real).square().mean()
"""
READS = """\
    @hookimpl
    def generator_loss(self, fake):
        return {"G/idea": fake.square().mean() / (1 + fake.square().mean().item())}
"""
BRANCHES = """\
    @hookimpl
    def penalty(self, real_logits):
        large = real_logits.sum() > 0
        return {"D/idea": real_logits.square().mean() if large else 0 * real_logits.sum()}
"""
ON_THE_HOST = """\
    @hookimpl(wrapper=True)
    def augment(self):
        images = yield
        return images + 0.1 * torch.randn(images.shape, generator=self.host_rng)
"""
STALE = """\
    _calls: int = PrivateAttr(0)

    @hookimpl
    def generator_loss(self, fake):
        self._calls += 1
        return {"G/idea": fake.mean() * (-1) ** self._calls}
"""
PLAIN_SGD = """\
    @hookimpl
    def make_optimizer(self, module):
        return torch.optim.SGD(module.parameters(), lr=0.1)
"""
DURING_CAPTURE = """\
    @hookimpl
    def generator_loss(self, fake):
        noise = torch.rand(fake.shape, device=fake.device, generator=self.rng)
        if fake.is_cuda:
            torch.cuda.synchronize()  # which only a capture forbids
        return {"G/idea": 0.1 * (fake * noise).mean()}
"""
WHOLLY = """\
    capturable: ClassVar[bool] = False

    @hookimpl
    def generator_loss(self, fake):
        return {"G/idea": 0.1 * fake.square().mean()}
"""


NOT_CAPTURED = "is not captured as a graph: idea: RuntimeError:"


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (READS, f"G's step {NOT_CAPTURED} called a synchronizing operation (idea.py:"),
        (BRANCHES, f"D's step {NOT_CAPTURED} called a synchronizing operation"),
        (ON_THE_HOST, f"{NOT_CAPTURED} draws on the CPU, which a captured graph cannot repeat"),
        (STALE, "G's step is not captured as a graph: the weights would move differently, by"),
    ],
)
def test_what_cannot_be_captured_is_named_once_and_runs_as_it_is(build, code, line) -> None:
    plain = build("watch_every=0", code=code)
    quick = build("watch_every=0", way=Graphs(CpuRecorder()), code=code)
    lines = [train(plain, 6), train(quick, 6)]
    assert quick.notes and all(line in said for said in quick.notes)
    assert len(quick.notes) == len(set(quick.notes)) <= 2  # once for each network
    if code is not STALE:  # which is at another call after the trials
        assert lines[0] == lines[1]
        assert all(map(torch.equal, states(plain), states(quick)))


class FailsAt(CpuRecorder):
    """Fails while it records the update of this number, as a capture does: by another error."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def record(self, function, generators):
        if len(self.tapes) + 1 == self.number:
            try:
                function()
                raise RuntimeError("not permitted when stream is capturing")
            finally:
                raise RuntimeError("operation failed due to a previous error during capture")
        return super().record(function, generators)


@pytest.mark.parametrize("overrides", [[], ["first=generator"]])
@pytest.mark.parametrize("number", [1, 2])
def test_a_capture_that_fails_ends_capturing_and_changes_nothing(build, number, overrides) -> None:
    plain = build(*overrides, "watch_every=0", code=DURING_CAPTURE)
    quick = build(*overrides, "watch_every=0", way=Graphs(FailsAt(number)), code=DURING_CAPTURE)
    lines = [train(plain, 10), train(quick, 10)]
    assert len(quick.notes) == 1 and quick.notes[0].startswith("no step is captured as a graph: ")
    assert len(quick.execution._recorder.tapes) == number - 1 and not quick.execution._recorded
    assert_same("graphs", plain, quick, lines)


def test_what_a_plugin_did_in_a_capture_is_named_and_not_what_came_of_it() -> None:
    class Idea(Plugin):
        """An idea."""

        def fail(self) -> None:
            raise RuntimeError("not permitted when stream is capturing")

    idea = Idea().model_copy()
    try:
        try:
            idea.fail()
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")
    except RuntimeError as error:
        found = blame(error)
    assert found and found.plugin is idea
    assert found.error == "RuntimeError: not permitted when stream is capturing"
    assert found.place.endswith(': raise RuntimeError("not permitted when stream is capturing")')


NO_MEMORY = """\
    _calls: int = PrivateAttr(0)
    _copies: list = PrivateAttr(default_factory=list)
    _left: int = PrivateAttr(-1)

    @hookimpl
    def generator_loss(self, fake):
        self._calls += 1
        if self._calls == FAILS:
            self._copies.append(weakref.ref(fake))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if self._calls == FAILS + 1:
            self._left = sum(copy() is not None for copy in self._copies)
        return {"G/idea": 0.1 * fake.square().mean()}
"""


@pytest.mark.parametrize(("way", "fails"), [("graphs", 4), ("graphs", 5), ("networks", 1)])
def test_a_trial_without_enough_memory_leaves_none_of_its_own_to_the_plain_step(
    build, monkeypatch, way: str, fails: int
) -> None:
    # in graphs the fourth call is the plain one of the trial, the fifth is captured
    begin = Snapshot.__init__

    def watched(self: Snapshot, run: Run) -> None:
        begin(self, run)
        plugin._copies.extend(weakref.ref(copy) for copy in self._copies)

    monkeypatch.setattr(Snapshot, "__init__", watched)
    run = build("watch_every=0", way=WAYS[way](), code=NO_MEMORY.replace("FAILS", str(fails)))
    plugin = run.recipe.plugins["idea"]
    train(run, 6)
    assert any("CUDA out of memory" in note for note in run.notes)
    assert plugin._copies and plugin._left == 0


def test_memory_of_a_failed_trial_goes_back_to_cuda_when_nothing_holds_it(monkeypatch) -> None:
    class Cycle:
        """What only a collection frees."""

    cycle = Cycle()
    cycle.itself = cycle
    gone = weakref.ref(cycle)
    del cycle
    emptied: list[bool] = []
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: emptied.append(gone() is None))
    release_memory(CPU)
    assert emptied == []
    release_memory(torch.device("cuda"))
    assert emptied == [True]


def test_an_optimizer_without_a_form_for_graphs_is_named(build) -> None:
    run = build(way=Graphs(CpuRecorder()), code=PLAIN_SGD)
    train(run, 2)
    assert run.notes == [
        "D's step is not captured as a graph: SGD has no capturable form",
        "G's step is not captured as a graph: SGD has no capturable form",
    ]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["first=generator"],
        ["first=generator", "share_forward=false"],
        ["first=generator", "accumulate=2"],
        ["d_steps=2", "g_steps=2"],
        ["pretraining={ iterations = 6 }", "first=generator"],
        GAMES["two discriminators"],
    ],
    ids=str,
)
@pytest.mark.parametrize("role", ["G", "D"])
def test_a_python_number_in_a_graph_is_found_before_a_wrong_step(build, role, overrides) -> None:
    code = (OF_G if role == "G" else OF_D).replace("BEGIN", "0")
    overrides = [*overrides, "watch_every=0"]
    plain, quick = (
        build(*overrides, code=code),
        build(*overrides, way=Graphs(CpuRecorder()), code=code),
    )
    lines = [train(plain, 14), train(quick, 14)]
    # G's pretraining is one more step of G
    told = [note.partition(" in iteration")[0] for note in quick.notes if "differently" in note]
    ends = 2 if role == "G" and "pretraining" in overrides[0] else 1
    assert told == ends * [f"{role}'s step is not replayed as a graph any more:"]
    assert_same("graphs", plain, quick, lines)
    assert role not in {key.update.role for key in quick.execution._recorded}


def test_a_python_number_in_the_graph_of_a_lazy_penalty_is_found_too(build) -> None:
    head = "from ganlab.toolbox.penalties import LazyPenalty as Plugin\n"
    overrides = (*ALONE, "watch_every=0")
    plain = build(*overrides, code=LAZILY, base=head)
    quick = build(*overrides, way=Graphs(CpuRecorder()), code=LAZILY, base=head)
    lines = [train(plain, 20), train(quick, 20)]
    (note,) = quick.notes
    assert note.startswith("D's step is not replayed as a graph any more: in iteration 13 ")
    assert_same("graphs", plain, quick, lines)
    # the graph of D's other step is not given up
    assert {key.update.role for key in quick.execution._recorded} == {"G", "D"}


@pytest.mark.usefixtures("often_compared")
@pytest.mark.parametrize("overrides", [[], ["first=generator"]])
def test_a_number_that_changes_late_is_found_at_the_planned_comparison(
    build, tmp_path: Path, overrides
) -> None:
    code, overrides = OF_G.replace("BEGIN", "17"), [*overrides, "watch_every=2"]
    quick = build(*overrides, way=Graphs(CpuRecorder()), code=code)
    train(quick, 19)
    assert quick.notes == []
    quick.iteration = 19
    write_checkpoint(state_of(quick), tmp_path)
    plain = build(*overrides, code=code)
    load_checkpoint(plain, tmp_path)
    ((line,), (other,)) = (
        [{name: value.item() for name, value in iterate(run).items()}] for run in (quick, plain)
    )
    apart = line.pop("replay/G")
    assert apart > TOLERANCE and line.pop("replay/D", 0) == 0
    assert_same("graphs", plain, quick, [[line], [other]])
    (note,) = quick.notes
    assert f"in iteration 20 the graph moved the weights differently, by {apart:.2g} of a" in note
    quick.iteration = 20
    assert "replay/G" not in iterate(quick)


def test_a_comparison_without_enough_memory_is_left_out_and_the_graph_goes_on(build) -> None:
    code = NO_MEMORY.replace("FAILS", str(WARM_UPS + 3))
    plain = build("watch_every=0", code=NO_MEMORY.replace("FAILS", "0"))
    quick = build("watch_every=0", way=Graphs(CpuRecorder()), code=code)
    lines = [train(plain, 10), train(quick, 10)]
    assert quick.notes == [
        "captured steps are not compared with steps as written any more: too little memory"
    ]
    assert_same("graphs", plain, quick, lines)
    assert quick.recipe.plugins["idea"]._calls == WARM_UPS + 3


@pytest.mark.parametrize("name", ["_copied", "_distance", "Snapshot"])
@pytest.mark.parametrize("iteration", [WARM_UPS, WARM_UPS + 1], ids=["trial", "comparison"])
@pytest.mark.parametrize("overrides", [[], ["first=generator"]])
def test_a_step_is_taken_once_wherever_memory_ends(
    build, monkeypatch, name: str, iteration: int, overrides: list[str]
) -> None:
    plain, quick = (
        build(*overrides, "watch_every=0", way=w) for w in (None, Graphs(CpuRecorder()))
    )
    begin, calls = getattr(trial, name), []

    def used_up(*arguments):
        calls.append(quick.iteration)
        if calls.count(iteration) == (1 if name == "Snapshot" else 2):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return begin(*arguments)

    monkeypatch.setattr(trial, name, used_up)
    lines = [train(plain, 8), train(quick, 8)]
    assert any("memory" in note for note in quick.notes)
    assert_same("graphs", plain, quick, lines)


def test_a_schedule_reaches_an_optimizer_without_a_form_for_graphs_in_each_of_its_steps(
    build,
) -> None:
    # pretraining and the game are two updates of one optimizer
    overrides = (
        "watch_every=0",
        "pretraining={ iterations = 6 }",
        "learning_rate_schedule={ kind = 'linear', over = 20 }",
    )
    plain = build(*overrides, code=PLAIN_SGD)
    quick = build(*overrides, way=Graphs(CpuRecorder()), code=PLAIN_SGD)
    assert_same("graphs", plain, quick, [train(plain, 14), train(quick, 14)])
    assert not quick.execution._recorded


@pytest.fixture
def pools(monkeypatch) -> list[int]:
    """A torch.cuda that captures nothing; the list has what happens to pools of memory.

    A positive number is a capture into that pool; -1 is the end of one that failed, -2 the release
    of its memory.
    """
    seen: list[int] = []
    handles = iter(range(1, 100))

    @contextmanager
    def capture(graph, pool, **options) -> Iterator[None]:
        seen.append(pool)
        yield

    class Graph:
        def replay(self) -> None:
            """Does nothing."""

    device = torch.device("cuda", 0)
    monkeypatch.setattr("ganlab.speed.graphs._stream", lambda _: SimpleNamespace(device=device))
    monkeypatch.setattr("torch.cuda.graph_pool_handle", lambda: next(handles))
    monkeypatch.setattr("torch.cuda.CUDAGraph", Graph)
    monkeypatch.setattr("torch.cuda.graph", capture)
    for number, name in ((-1, "_cuda_endAllocateToPool"), (-2, "_cuda_releasePool")):
        note = lambda device, pool, number=number: seen.append(number)  # noqa: E731
        monkeypatch.setattr(torch._C, name, note, raising=False)
    fresh = SimpleNamespace(graphsafe_get_state=lambda: None, graphsafe_set_state=lambda _: None)
    monkeypatch.setattr("torch.cuda.default_generators", (fresh,))
    monkeypatch.setattr("torch.Generator", lambda _: fresh)
    return seen


def test_graphs_share_memory_until_all_are_gone(pools: list[int]) -> None:
    recorder = CudaRecorder(torch.device("cuda", 0))
    replays = [recorder.record(lambda: None, [])[1] for _ in range(2)]
    assert pools == [2, 2]
    del replays[0]
    recorder.record(lambda: None, [])
    assert pools == [2, 2, 2]
    replays.clear()
    recorder.record(lambda: None, [])
    assert pools == [2, 2, 2, 3]


def test_a_failed_capture_ends_the_use_of_its_pool_and_releases_it(pools: list[int]) -> None:
    recorder = CudaRecorder(torch.device("cuda", 0))

    def fails() -> None:
        raise RuntimeError("not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        recorder.record(fails, [])
    assert pools == [2, -1, -2]
    recorder.record(lambda: None, [])
    assert pools[-1] > 2


def test_a_step_is_not_captured_on_images_that_a_plain_step_left_in_parts(build) -> None:
    # G's step cannot be captured, so its images of each part lie in new memory every time
    overrides = ("watch_every=0", "accumulate=2", "first=generator")
    plain = build(*overrides, code=READS)
    quick = build(*overrides, way=Graphs(CpuRecorder()), code=READS)
    assert_same("graphs", plain, quick, [train(plain, 10), train(quick, 10)])
    first, second = quick.notes
    assert first.startswith("G's step is not captured as a graph: idea")
    assert second.startswith("D's step is not captured as a graph: it takes the images of G's step")


DESCENDS = """\
    @hookimpl
    def make_optimizer(self, module, role):
        if role == "generator":
            return torch.optim.Adam(module.parameters(), 1e-3, fused=True)
        return torch.optim.SGD(module.parameters(), 0.01)
"""
RESTS = """\
    resting: list[int] = []

    @hookimpl(tryfirst=True)
    def discriminator_step(self, run):
        return {} if run.iteration in self.resting else None
"""
CLIPS = "weight_clipping={ limit = 0.05 }"


@pytest.mark.parametrize(
    ("code", "overrides"),
    [
        (DESCENDS, []),
        (BRANCHES, [CLIPS]),
        (RESTS, [CLIPS, "idea.resting=[1, 2]"]),
        (RESTS, [CLIPS, "idea.resting=[3]"]),
    ],
    ids=["refused, not fused", "refused, clipped", "later", "resting at the capture"],
)
def test_a_captured_pass_of_d_is_not_shared_with_a_plain_step_of_d(build, code, overrides) -> None:
    overrides = ["first=generator", "watch_every=0", *overrides]
    plain = build(*overrides, code=code)
    quick = build(*overrides, way=Graphs(CpuRecorder()), code=code)
    lines = [train(plain, 10), train(quick, 10)]
    again = "D judges G's images again in its own step: that step is not captured with G's"
    assert quick.notes.count(again) == 1 and len(quick.notes) <= 2
    assert "G" in {update.role for update, *_ in quick.execution._recorded}
    assert_same("graphs", plain, quick, lines)


def test_losses_of_a_function_made_anew_each_time_are_not_captured_for_ever(build) -> None:
    from ganlab.steps import generator_losses

    run = build(way=Graphs(CpuRecorder()))
    batch = run.hook.sample_batch(batch_size=4, device=CPU)
    for _ in range(30):
        run.descend(run.G_optimizer, lambda run, batch: generator_losses(run, batch), batch)
    assert not run.execution._recorded  # none was seen often enough


def test_a_compiler_that_fails_is_named_and_the_networks_run_as_they_are(build) -> None:
    def broken(graph, inputs):
        raise RuntimeError("no C++ compiler here")

    plain, quick = build(), build(way=Compiled(broken))
    lines = [train(plain, 4), train(quick, 4)]
    assert lines[0] == lines[1]
    assert len(quick.notes) == 2 and all("no C++ compiler here" in line for line in quick.notes)


PRECISIONS = ["float32", "bfloat16"]


@pytest.fixture
def in_bfloat16_too(monkeypatch) -> None:
    """Networks run in the precision of the recipe, as on CUDA, where a CPU would use float32."""

    def autocast(precision: str, device: torch.device) -> Any:
        return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")

    monkeypatch.setattr("ganlab.run.autocast", autocast)


@pytest.mark.parametrize(("precision", "factor"), [("float32", 2), ("bfloat16", 1.3)])
@pytest.mark.usefixtures("in_bfloat16_too")
def test_a_compiler_that_gives_other_numbers_is_refused(build, precision, factor) -> None:
    def wrong(graph, inputs):
        return lambda *arguments: [factor * t for t in graph(*arguments)]

    precision = f"precision={precision}"
    plain, quick = build(precision), build(precision, way=Compiled(wrong))
    lines = [train(plain, 4), train(quick, 4)]
    assert lines[0] == lines[1]
    assert len(quick.notes) == 2
    assert all("would differ, by" in line for line in quick.notes)


@pytest.mark.long
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="Inductor needs a C++ compiler"
)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("game", ["bce", "relativistic"])
@pytest.mark.usefixtures("in_bfloat16_too")
def test_the_compiler_of_a_real_run_is_accepted_at_the_first_step(build, game, precision) -> None:
    run = build(*GAMES[game], f"precision={precision}", way=choose_execution(build(COMPILE)))
    train(run, 2)
    assert run.notes == [] and run.execution._compiled and not run.execution._refused


@pytest.mark.parametrize(
    ("device", "compile_", "kind", "note"),
    [
        ("cpu", "auto", Eager, None),
        ("cpu", "off", Eager, None),
        ("cpu", "networks", Compiled, None),
        ("cpu", "graphs", Eager, 'compile = "graphs" is for CUDA; running eager here'),
        ("cuda", "auto", Graphs, None),
        ("cuda", "graphs", Graphs, None),
        ("cuda", "off", Eager, None),
    ],
)
def test_the_choice_is_the_recipes_as_far_as_the_device_allows(
    build, monkeypatch, device, compile_, kind, note
) -> None:
    monkeypatch.setattr("ganlab.assembly.CudaRecorder", lambda device: CpuRecorder())
    run = build(f"compile={compile_}")
    run.notes.clear()
    run.device = torch.device(device)
    assert type(choose_execution(run)) is kind
    assert run.notes == ([note] if note else [])


def test_a_plugin_that_says_it_cannot_be_captured_is_believed(build, monkeypatch) -> None:
    monkeypatch.setattr("ganlab.assembly.CudaRecorder", lambda device: CpuRecorder())
    run = build(code=WHOLLY)
    run.device = torch.device("cuda")
    assert type(choose_execution(run)) is Eager
    assert run.notes == ["idea cannot be captured as a CUDA graph; running eager"]


def test_a_checkpoint_of_captured_steps_goes_on_in_either_way(build, tmp_path: Path) -> None:
    overrides = ("learning_rate_schedule={ kind = 'linear', over = 20 }", "ema={}")
    whole = build(*overrides, way=Graphs(CpuRecorder()))
    train(whole, 6)
    whole.iteration = 6
    write_checkpoint(state_of(whole), tmp_path)
    (state,) = tmp_path.glob("*.pt")
    groups = torch.load(state, weights_only=True)["networks"]["G_optimizer"]["param_groups"]
    assert isinstance(groups[0]["lr"], float) and groups[0]["capturable"] is False
    rest = []
    with whole.execution.running():
        for whole.iteration in range(6, 12):
            rest.append({n: v.item() for n, v in iterate(whole).items()})
    for way in (Eager(), Graphs(CpuRecorder())):
        again = build(*overrides, way=way)
        load_checkpoint(again, tmp_path)
        lines = []
        with again.execution.running():
            for again.iteration in range(6, 12):
                lines.append({n: v.item() for n, v in iterate(again).items()})
        assert_same("graphs", whole, again, [rest, lines])


def test_the_first_step_after_a_resume_reads_the_rate_that_captured_steps_read(build) -> None:
    # on CUDA a Python number has more digits than the tensor that a graph reads
    run = build("watch_every=2", way=Graphs(CpuRecorder()))
    run.iteration = 39  # runs as written
    iterate(run)
    assert all(isinstance(o.param_groups[0]["lr"], torch.Tensor) for o in run.optimizers.values())


def test_a_snapshot_forgets_the_moments_of_weights_that_had_none(build) -> None:
    run = build()
    first, *others = run.G.parameters()
    first.grad = torch.ones_like(first)
    run.G_optimizer.step()
    snapshot = Snapshot(run)
    others[0].grad = torch.ones_like(others[0])
    run.G_optimizer.step()
    snapshot.restore()
    assert set(run.G_optimizer.state) == {first}


@pytest.mark.cuda
@pytest.mark.parametrize("overrides", GAMES.values(), ids=GAMES)
def test_captured_cuda_graphs_train_alike(
    tmp_path: Path, gpu: torch.device, overrides: list[str]
) -> None:
    file = tmp_path / "game.toml"
    file.write_text(GAME)
    lines, runs = [], []
    for mode in ("off", "graphs"):
        recipe = load_recipe(file, [*overrides, f"compile={mode}"])
        run = assemble(recipe, gpu)
        run.notes.clear()  # of what does not concern the GPU
        runs.append(run)
        lines.append(train(run, 18))  # with comparisons, and a watched step that is replayed
    assert runs[1].notes == [] and type(runs[1].execution) is Graphs and runs[1].execution._recorded
    for mine, theirs in zip(*lines, strict=True):
        assert mine == pytest.approx(theirs, rel=2e-2, abs=1e-3), json.dumps([mine, theirs])


@pytest.mark.cuda
def test_a_capture_that_fails_on_cuda_ends_capturing_and_changes_nothing(tmp_path: Path) -> None:
    file, code = tmp_path / "game.toml", tmp_path / "idea.py"
    file.write_text(GAME)
    code.write_text(HEAD + DURING_CAPTURE)
    lines = []
    for mode in ("off", "graphs"):
        noise = "instance_noise={ sigma = 0.1 }"
        idea = 'idea={ use = "./idea.py" }'
        run = assemble(load_recipe(file, [idea, noise, f"compile={mode}"]), torch.device("cuda", 0))
        run.notes.clear()  # of what does not concern the GPU
        lines.append(train(run))
    (note,) = run.notes
    assert "idea: " in note and "CUDA error: operation not permitted when" in note
    for mine, theirs in zip(*lines, strict=True):
        assert mine == pytest.approx(theirs, rel=2e-2, abs=1e-3)
    other = assemble(load_recipe(file, ["compile=graphs"]), torch.device("cuda", 0))
    other.notes.clear()  # of what does not concern the GPU
    train(other)
    assert other.notes == [] and other.execution._recorded  # another run is captured as ever


@pytest.mark.cuda
@pytest.mark.parametrize("overrides", [[], ["first=generator"]])
def test_a_python_number_in_a_cuda_graph_is_found(
    tmp_path: Path, gpu: torch.device, overrides: list[str]
) -> None:
    file, code = tmp_path / "game.toml", tmp_path / "idea.py"
    file.write_text(GAME)
    code.write_text(HEAD + OF_G.replace("BEGIN", "0"))
    lines = []
    for mode in ("off", "graphs"):
        idea = 'idea={ use = "./idea.py" }'
        recipe = load_recipe(file, [idea, *overrides, f"compile={mode}", "watch_every=0"])
        run = assemble(recipe, gpu)
        run.notes.clear()  # of what does not concern the GPU
        lines.append(train(run))
    (note,) = run.notes
    assert note.startswith("G's step is not replayed as a graph any more: in iteration 5 ")
    for mine, theirs in zip(*lines, strict=True):
        assert mine == pytest.approx(theirs, rel=2e-2, abs=1e-3)


@pytest.mark.cuda
@pytest.mark.parametrize("deterministic", ["true", "false"])
def test_cuda_graphs_stay_close_to_plain_steps(
    tmp_path: Path, gpu: torch.device, deterministic: str
) -> None:
    file = tmp_path / "game.toml"
    file.write_text(GAME)
    settings = ["compile=graphs", "watch_every=2", "first=generator", "iterations=81"]
    recipe = load_recipe(file, [*settings, f"deterministic={deterministic}"])
    run = assemble(recipe, gpu)
    run.notes.clear()  # of what does not concern the GPU
    try:
        lines = train(run, 81)
    finally:
        torch.use_deterministic_algorithms(False)
    assert run.notes == []
    found = {i: (x["replay/G"], x["replay/D"]) for i, x in enumerate(lines) if "replay/G" in x}
    assert {graph.compared for graph in run.execution._recorded.values()} == {79}
    if deterministic == "true":
        assert not found  # they are 0
    else:
        assert [*found] == [39, 79]
        assert all(max(pair) <= TOLERANCE for pair in found.values())
    watched = [number for number, line in enumerate(lines) if "gradient/G/pixel_loss" in line]
    assert watched == sorted({2, 4, 8, 16} | {*range(1, 81, 2)})
