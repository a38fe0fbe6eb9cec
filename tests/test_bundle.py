"""A number that was not finite can be reproduced from the bundle alone, in another place."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from test_replay import PLANT, ROOT, VALUE

from ganlab import cli, session
from ganlab.commands.replay import lines, replay_bundle
from ganlab.errors import RecipeError
from ganlab.limits import Limits
from ganlab.recipe import trust
from ganlab.recipe.model import load_recipe
from ganlab.runs.folder import RunFolder
from ganlab.runs.reading import Log

RECIPE = """\
iterations = 5
batch_size = 2
evaluate_every = 9
checkpoint_every = 9
watch_every = 0

[plugins]
image_folder = { path = "photos", crop = 16 }
bicubic = { scale = 4 }
encoder_decoder = { width = 4 }
patch_discriminator = { width = 4, num_layers = 1, norm = "batch" }
bce = {}
pixel_loss = {}
ema = {}
pair_pool = { size = 4 }
plant = { use = "./plant.py", at = 3 }
"""


def failed(folder: Path, body: str, *overrides: str) -> RunFolder:
    """A run on photographs that fails at iteration 3."""
    (folder / "photos").mkdir(exist_ok=True)
    for number in range(4):
        drawn = torch.randint(256, (40, 40, 3), dtype=torch.uint8).numpy()
        Image.fromarray(drawn).save(folder / "photos" / f"photo{number}.png")
    (folder / "plant.py").write_text(PLANT + body)
    (folder / "game.toml").write_text(RECIPE)
    loaded = load_recipe(folder / "game.toml", overrides)
    made, code = session.start(loaded, "cpu", Limits(), folder / "runs")
    assert code == 3
    return made


@pytest.mark.parametrize(
    ("body", "settings"),
    [
        (VALUE["penalty"], []),
        (VALUE["degrade"], ["accumulate=2"]),
        (ROOT["generator_loss"], ["d_steps=2"]),
        (ROOT["augment"], ["first=generator"]),
    ],
)
def test_a_bundle_gives_the_same_fault_without_the_training_data(
    body: str, settings: list[str], tmp_path: Path
) -> None:
    made = failed(tmp_path, body, *settings)
    (told,) = list(Log(made.verdicts))
    assert told["bundle"] == "nonfinite-0000003"
    assert len(told["samples"]) == 2
    assert all(sample.startswith("photo") and " at (" in sample for sample in told["samples"])
    elsewhere = tmp_path / "elsewhere"
    shutil.move(made.path / told["bundle"], elsewhere)
    shutil.rmtree(tmp_path / "photos")
    shutil.rmtree(made.path)
    found = replay_bundle(elsewhere, "cpu")
    assert found.reproduced
    named = f"training exploded at iteration 3, {found.fault.step}: {found.fault.tensor} is"
    assert told["sentence"].startswith(named)
    shown = lines(found)
    assert shown[-1] == "reproduced"
    assert any(line.startswith("not finite: ") for line in shown)
    assert [line for line in shown if line.startswith("sample: ")]
    assert not list(elsewhere.rglob("*.pt"))


def test_another_result_is_told_and_has_another_exit_code(tmp_path: Path) -> None:
    made = failed(tmp_path, VALUE["penalty"])
    bundle = made.bundle(3)
    (bundle / "plant.py").write_text(PLANT + ROOT["penalty"])
    trust._consented.clear()
    refused = CliRunner().invoke(cli.main, ["replay", str(bundle)])
    assert refused.exit_code == 2
    assert "which you have not run before; nothing was run" in refused.output
    shown = CliRunner().invoke(cli.main, ["replay", str(bundle), "--trust-code", "--json"])
    assert shown.exit_code == 1
    found = json.loads(shown.stdout)
    assert not found["reproduced"]
    assert "D/root" in found["again"]["what"]


def test_a_damaged_bundle_is_refused_by_name(tmp_path: Path) -> None:
    made = failed(tmp_path, VALUE["penalty"])
    bundle = made.bundle(3)
    file = bundle / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(RecipeError, match=r"damaged bundle: .*sha256 of state.safetensors differs"):
        replay_bundle(bundle, "cpu")
    content[-1] ^= 1
    file.write_bytes(content)
    about = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps(about | {"state": {"dict": []}}))
    with pytest.raises(RecipeError, match=r"damaged bundle: .*it is no state of iteration 2"):
        replay_bundle(bundle, "cpu")
    (bundle / "bundle.json").write_text("[" * 5000)
    with pytest.raises(RecipeError, match="damaged bundle"):
        replay_bundle(bundle, "cpu")
    (bundle / "bundle.json").unlink()
    with pytest.raises(RecipeError, match="not a bundle of a run: it has no bundle"):
        replay_bundle(bundle, "cpu")
