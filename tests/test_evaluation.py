"""Held-out images evaluated together: the same figures, in order, and one wait for the device."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ganlab.assembly import assemble
from ganlab.cli import main
from ganlab.evaluation import scores as evaluation
from ganlab.evaluation.scores import evaluate_generator, evaluate_images
from ganlab.plugin import EvaluatedImage
from ganlab.recipe.model import load_recipe
from ganlab.run import Run

GRAIN = """\
import torch
from ganlab import Plugin, hookimpl


class Grain(Plugin):
    @hookimpl(wrapper=True)
    def degrade(self):
        images = yield
        return images + 0.1 * torch.randn(images.shape, generator=self.rng, device=images.device)

    @hookimpl
    def score_images(self, sr, hr, lr):
        assert len(sr) == len(hr) == len(lr) == 1
        drawn = torch.rand((), generator=self.rng, device=sr.device)
        error = (sr.double() - hr).abs().mean()
        return {"number": float(sr.shape[-1]), "error": error, "drawn": drawn}
"""


class Nearest(nn.Module):
    """x4, exact whatever the size of the batch; remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.shown.append(len(images))
        return images.repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.fixture
def run(tiny: Path) -> Run:
    """A run whose degradation draws for each image, with a plugin that scores images."""
    (tiny.parent / "grain.py").write_text(GRAIN)
    tiny.write_text(tiny.read_text() + 'grain = { use = "./grain.py" }\n')
    return assemble(load_recipe(tiny), torch.device("cpu"))


def pictures(*shapes: tuple[int, ...]) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return {
        f"{number}": torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng)
        for number, shape in enumerate(shapes)
    }


SEVERAL = pictures(*[(3, 36, 40)] * 3, (1, 36, 40), (3, 38, 43), (3, 40, 36), (3, 36, 40))


def evaluated(
    run: Run, images: dict[str, Tensor], generator: nn.Module | None = None
) -> list[EvaluatedImage]:
    return list(evaluate_images(images.items(), generator or Nearest(), run))


def test_images_judged_together_get_what_each_gets_alone(run: Run) -> None:
    generator = Nearest()
    together = evaluated(run, SEVERAL, generator)
    # a grey image and one of another size end a group; 38 x 43 is cut to 36 x 40
    assert generator.shown == [3, 1, 1, 1, 1]
    alone = [one for item in SEVERAL.items() for one in evaluated(run, dict([item]))]
    assert [item.name for item in together] == list(SEVERAL)
    for one, other in zip(together, alone, strict=True):
        for kind in ("hr", "lr", "sr", "bicubic"):
            assert torch.equal(getattr(one, kind), getattr(other, kind))
            assert getattr(one, kind).device.type == "cpu"
        assert one.scores == pytest.approx(other.scores, rel=1e-12)
        assert one.bicubic_scores == pytest.approx(other.bicubic_scores, rel=1e-12)
    assert len({item.scores["drawn"] for item in together}) == len(SEVERAL)


def test_a_score_is_a_number_whether_the_plugin_gave_a_number_or_a_tensor(run: Run) -> None:
    for item in evaluated(run, pictures((3, 36, 40), (3, 36, 40))):
        assert {type(value) for value in item.scores.values()} == {float}
        assert item.scores["number"] == item.sr.shape[-1]
        assert item.scores["error"] == (item.sr.double() - item.hr).abs().mean().item()


def test_a_group_has_no_more_pixels_than_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "TOGETHER", {"cpu": 2 * 36 * 40 + 1})
    generator = Nearest()
    assert len(evaluated(run, pictures(*[(3, 36, 40)] * 5), generator)) == 5
    assert generator.shown == [2, 2, 1]


def test_images_are_taken_as_they_are_needed(run: Run) -> None:
    taken: list[str] = []

    def images() -> Iterator[tuple[str, Tensor]]:
        for name, image in pictures((3, 36, 40), (3, 40, 36), (3, 36, 40), (3, 40, 36)).items():
            taken.append(name)
            yield name, image

    found = evaluate_images(images(), Nearest(), run)
    assert next(found).name == "0"
    assert taken == ["0", "1"]


class Waits(TorchDispatchMode):
    """Counts what would wait for a device: tensors turned into Python numbers one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@contextmanager
def transfers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """The tensors brought to the host as a list; none may become a number by itself."""
    whole, brought = Tensor.tolist, []

    def counted(tensor: Tensor) -> Any:
        brought.append(tensor)
        return whole(tensor)

    with monkeypatch.context() as patch, Waits() as waits:
        patch.setattr(Tensor, "tolist", counted)
        yield brought
    assert waits.count == 0


def test_the_scores_of_a_group_come_to_the_host_in_one_transfer(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with transfers(monkeypatch) as brought:
        evaluated(run, pictures(*[(3, 36, 40)] * 4, *[(3, 40, 36)] * 2))
    # 6 scores and the plugin's 2 tensors, of SR and of bicubic
    assert [len(tensor) for tensor in brought] == [4 * 2 * 8, 2 * 2 * 8]


def test_the_checkerboards_of_all_groups_come_to_the_host_in_one_transfer(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.held_out = pictures(*[(3, 36, 40)] * 3, (1, 36, 40), (3, 40, 36))
    with transfers(monkeypatch) as brought:
        health = evaluate_generator(run, Nearest()).health
    assert [len(tensor) for tensor in brought] == [3 * 2 * 8, 2 * 8, 2 * 8, 5]
    alone = []
    for item in run.held_out.items():
        run.held_out, run.progress.bicubic = dict([item]), {}
        alone.append(evaluate_generator(run, Nearest()).health["health/checkerboard"])
    assert health["health/checkerboard"] == pytest.approx(sum(alone) / 5, rel=1e-12)


SEARCHES = """\
import torch
from ganlab import Plugin, hookimpl


class Searches(Plugin):
    @hookimpl
    def generator_loss(self, fake):
        return {"G/searches": 0 * fake.mean() + float(torch.backends.cudnn.benchmark)}

    @hookimpl
    def evaluation_images(self):
        return {"grey": torch.full((3, 36, 40), 128, dtype=torch.uint8)}

    @hookimpl
    def score_images(self, sr):
        return {"searches": float(torch.backends.cudnn.benchmark)}
"""


def test_cudnn_searches_for_kernels_in_training_but_not_in_evaluations(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tiny.parent / "searches.py").write_text(SEARCHES)
    tiny.write_text(
        tiny.read_text().replace("evaluate_every = 100", "evaluate_every = 2\nwatch_every = 0")
        + 'searches = { use = "./searches.py" }\n'
    )
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)  # as while graphs are captured
    out = CliRunner().invoke(
        main, ["run", str(tiny), "--runs", str(tiny.parent), "--name", "run", "--device", "cpu"]
    )
    assert out.exit_code == 0, out.output
    lines = list(map(json.loads, (tiny.parent / "run/stats.jsonl").read_text().splitlines()))
    found = [v for line in lines for name, v in line.items() if name == "G/searches"]
    assert found == [1.0] * 4
    found = [v for line in lines for name, v in line.items() if name == "evaluation/searches"]
    assert found == [0.0] * 2


@pytest.mark.cuda
def test_a_gpu_is_waited_for_as_often_for_six_images_as_for_two(tiny: Path) -> None:
    (tiny.parent / "grain.py").write_text(GRAIN)
    tiny.write_text(tiny.read_text() + 'grain = { use = "./grain.py" }\n')
    on_gpu = assemble(load_recipe(tiny), torch.device("cuda", 0))
    waits = []
    for count in (2, 2, 6):  # the first time makes constants, and does not count
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                evaluated(on_gpu, pictures(*[(3, 36, 40)] * count))
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits.append(len([w for w in told if "synchronizing CUDA" in str(w.message)]))
    assert waits[1] == waits[2] > 0
