"""Recipes trained by two processes over gloo are the runs of one process on the whole batch."""

import json
from pathlib import Path

import pytest
import torch
from ranks_at_work import trained_by
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ganlab.checkpoint import checkpoint_file, read_state

SETTINGS = {
    "iterations": "50",
    "batch_size": "4",
    "evaluate_every": "50",
    "checkpoint_every": "50",
    "watch_every": "10",
    "precision": '"float64"',
}
PLUGINS = {
    "dead_leaves": "{ crop = 16, num_images = 4, size = 32 }",
    "bicubic": "{ scale = 4 }",
    "encoder_decoder": "{ width = 4 }",
    "patch_discriminator": "{ width = 4, num_layers = 1 }",
    "pixel_loss": "{}",
}
FEW = {
    "wgan_gp": "d_steps = 2; wasserstein = {}; gradient_penalty = {}",
    "r1": "bce = {}; r1 = { every = 4 }",
    "r3gan": "relativistic_paired = {}; r1 = {}; r2 = {}; ema = {}",
    "instance_noise": "bce = {}; instance_noise = { sigma = 0.1 }",
    "diff_augment": "hinge = {}; spectral_norm = {}; diff_augment = {}",
    "ada": "bce = {}; ada = { initial_p = 0.4, every = 2, speed = 0.2 }",
    "label_flipping": "bce = {}; label_flipping = { probability = 0.3 }",
}
MORE = {
    "whole_batch": "relativistic_average = {}; lecam = { start = 2 }; dragan = {}; "
    'feature_matching = { kind = "mean" }; gradient_clipping = { generator = 0.1 }',
    "consensus": "bce = {}; consensus = {}",
    "apa": "bce = {}; apa = { initial_p = 0.4, every = 2, speed = 0.2 }",
    "adaptive_discriminator": "bce = {}; adaptive_discriminator = { threshold = 1.0 }",
    "generator_first": 'first = "generator"; bce = {}; consistency = {}',
    "in_parts": "batch_size = 8; accumulate = 2; bce = {}; instance_noise = {}; r1 = {}",
    "batch_norm": "sync_batch_norm = true; lsgan = {}; "
    'patch_discriminator = { width = 4, num_layers = 2, norm = "batch" }',
    "degraded": "bce = {}; gaussian_blur = {}; gaussian_noise = {}; jpeg = {}; poisson_noise = {}; "
    "pair_pool = { size = 12 }",
}


def text(lines: str) -> str:
    """A recipe; what is no table is a setting."""
    settings, plugins = dict(SETTINGS), dict(PLUGINS)
    for line in lines.split(";"):
        key, _, value = line.strip().partition(" = ")
        (plugins if value.startswith("{") else settings)[key] = value
    parts = [[f"{key} = {value}" for key, value in part.items()] for part in (settings, plugins)]
    return "\n".join([*parts[0], "[plugins]", *parts[1]])


class Pair:
    """The runs of one process, and those of two."""

    def __init__(self, recipes: dict[str, str], folder: Path, length: int) -> None:
        files = {name: folder / f"{name}.toml" for name in recipes}
        for name, file in files.items():
            file.write_text(text(recipes[name]))
        settings = [f"iterations={length}", f"checkpoint_every={length}", "watch_every=5"]
        self.runs = [trained_by(count, files, folder, *settings) for count in (1, 2)]
        self.length = length

    def gradients(self, name: str) -> list[dict[str, Tensor]]:
        return [torch.load(runs / f"{name}.pt") for runs in self.runs]

    def stats(self, name: str) -> list[list[dict[str, float]]]:
        files = [runs / name / "stats.jsonl" for runs in self.runs]
        return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]

    def states(self, name: str) -> list[list[Tensor]]:
        """The weights of G and D, and all numbers that plugins keep, at the end."""
        found = []
        for runs in self.runs:
            state = read_state(checkpoint_file(runs / name / "checkpoints", self.length))
            kept = [state["networks"]["G"], state["networks"]["D"], state["plugins"]]
            found.append([torch.as_tensor(leaf, dtype=torch.float64) for leaf in tree_leaves(kept)])
        return found


def compare(pair: Pair, name: str) -> dict[str, float]:
    """The largest differences, each as a share of what it differs from."""
    one, two = pair.gradients(name)
    assert one.keys() == two.keys()
    worst = {"float64": 0.0, "float32": 0.0}
    for precision in worst:
        for role in ("D", "G"):
            names = [key for key in one if key.startswith(f"{precision} {role} ")]
            assert names
            largest = max(one[key].abs().max() for key in names)
            apart = max((one[key] - two[key]).abs().max() for key in names)
            worst[precision] = max(worst[precision], float(apart / largest))
    states = zip(*pair.states(name), strict=True)
    weights = max(float((ours - theirs).abs().max()) for ours, theirs in states)
    one_log, two_log = pair.stats(name)
    assert [line.keys() for line in one_log] == [line.keys() for line in two_log]
    logged = 0.0
    for a, b in zip(one_log, two_log, strict=True):
        for key, value in a.items():
            logged = max(logged, abs(value - b[key]) / max(abs(value), 1e-3))
    return worst | {"weights": weights, "stats": logged}


@pytest.mark.parametrize(
    ("recipes", "length"), [(FEW, 6), pytest.param(FEW | MORE, 50, marks=pytest.mark.long)]
)
def test_two_processes_train_as_one_does(
    recipes: dict[str, str], length: int, tmp_path: Path
) -> None:
    pair = Pair(recipes, tmp_path, length)  # two processes for all recipes: they take seconds
    for name in recipes:
        found = compare(pair, name)
        print(name, *(f"{what} {value:.1e}" for what, value in found.items()))
        assert found["float64"] <= 1e-12, name
        # D's gradients from real and fake images nearly cancel at first, which magnifies rounding
        assert found["float32"] <= (1e-5 if name in FEW else 1e-4), name
        assert found["weights"] <= 1e-6, name
        assert found["stats"] <= 1e-6, name
