"""Sentences of the README, of docs/ and of `--help` that no other test holds."""

import dataclasses
import json
import re
import shlex
import socket
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

import ganlab
from ganlab import Plugin, hookspecs
from ganlab.assembly import assemble
from ganlab.cli import main
from ganlab.cli.options import Duration
from ganlab.commands.describe import describe_plugins
from ganlab.compare.difference import difference, side
from ganlab.evaluation.samples import COLUMNS
from ganlab.images.files import read_image, write_png
from ganlab.iteration import iterate
from ganlab.monitoring.verdicts import Verdict
from ganlab.recipe.discovery import find_plugin
from ganlab.recipe.file import Origin, read_recipe
from ganlab.recipe.model import load_recipe
from ganlab.runs.reading import OBJECTS, Log
from ganlab.runs.record import Change

ROOT = Path(__file__).parents[1]
PAGES = {page.name: page for page in (*(ROOT / "docs").rglob("*.md"), ROOT / "README.md")}

GAME = """\
iterations = 20
batch_size = 2
evaluate_every = 8
checkpoint_every = 8
report_every = 6
watch_every = 7

[plugins]
image_folder = { path = "photos", evaluation_path = "held_out", crop = 24 }
bicubic = {}
encoder_decoder = { width = 4, num_blocks = 1 }
patch_discriminator = { width = 4, num_layers = 1 }
bce = { weight = 0.01 }
r1 = {}
pixel_loss = {}
"""


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def block(page: str, containing: str) -> str:
    """The block of code on a page that has these words."""
    found = re.findall(r"```\w*\n(.*?)```", PAGES[page].read_text(), flags=re.DOTALL)
    (text,) = [text for text in found if containing in text]
    return str(text)


def flat(page: str) -> str:
    """A page as one line, so that a sentence is found wherever its lines break."""
    return " ".join(PAGES[page].read_text().split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, a recipe and a plugin file."""
    folder = tmp_path_factory.mktemp("facts")
    rng = torch.Generator().manual_seed(0)
    for part in ("photos", "held_out"):
        (folder / part).mkdir()
        for name in "ab":
            image = torch.randint(0, 256, (3, 132, 136), dtype=torch.uint8, generator=rng)
            write_png(image, folder / part / f"{name}.png")
    (folder / "game.toml").write_text(GAME)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A run of the recipe, to its end."""
    done = invoke("run", folder / "game.toml", "--runs", folder / "runs", "--name", "whole")
    assert done.exit_code == 0, done.output
    return folder / "runs" / "whole"


# --- README --------------------------------------------------------------------------------------


def test_the_files_that_the_readme_lists_are_in_a_run_folder(run: Path) -> None:
    listed = block("README.md", "runs/wgan_gp-1/\n").splitlines()[1:]
    names = [name for line in listed for name in re.split(r",\s*", line.strip().split("  ")[0])]
    assert len(names) >= 8
    for name in names:
        assert (run / name).exists(), name


def test_the_page_of_the_run_folder_has_every_file_and_every_field(run: Path) -> None:
    page = PAGES["run-folder.md"].read_text()
    heads = set(re.findall(r"[\w.]+", " ".join(re.findall(r"^### (.+)$", page, re.MULTILINE))))
    named = set(re.findall(r"`([\w.]+)`", page))
    for entry in run.iterdir():
        assert entry.name in heads | named | {"game.toml"}, entry.name
    fields = {key for checks in OBJECTS.values() for key in checks}
    fields |= set(json.loads((run / "manifest.json").read_text()))
    fields |= set(json.loads((run / "status.json").read_text()))
    fields |= {key for log in ("scores", "timing") for key in first_line(run / f"{log}.jsonl")}
    fields |= {field.name for field in dataclasses.fields(Verdict)} | {*Change.model_fields}
    assert fields - named == set()
    groups = {key.partition("/")[0] + "/..." for log in Log(run / "stats.jsonl") for key in log}
    assert groups - {"iteration/..."} <= set(re.findall(r"`(\w+/\.\.\.)`", page))


def first_line(file: Path) -> dict[str, object]:
    return json.loads(file.read_text().partition("\n")[0])


def test_every_evaluation_leaves_a_strip_of_four_columns(run: Path) -> None:
    strips = sorted((run / "samples").iterdir())
    assert [path.stem for path in strips] == ["0000008", "0000016", "0000020"]
    assert read_image(strips[0]).shape[-1] == 4 * 132 + 4
    assert [name.partition(",")[0] for name in COLUMNS] == ["LR", "bicubic", "SR", "HR"]


def test_the_plugin_of_the_readme_trains(folder: Path) -> None:
    (folder / "edges.py").write_text(block("README.md", "class EdgeLoss"))
    line = re.search(r"`(edges = \{.*?\})`", PAGES["README.md"].read_text())
    assert line
    (folder / "edges.toml").write_text(GAME.replace("= 20", "= 1") + line[1] + "\n")
    done = invoke("run", folder / "edges.toml", "--runs", folder / "runs")
    assert done.exit_code == 0, done.output
    (first, *_) = [*Log(folder / "runs" / "edges-1" / "stats.jsonl")]
    assert first["G/edges"] > 0
    assert re.search(r"edges\.py, sha256 [0-9a-f]{64}", done.stderr)
    assert (folder / "runs" / "edges-1" / "edges.py").is_file()
    manifest = json.loads((folder / "runs" / "edges-1" / "manifest.json").read_text())
    assert manifest["plugins"]["edges"]["sha256"] in done.stderr


def test_the_readmes_words_for_ones_own_photographs_are_a_recipe(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    words = re.search(r"`ganlab run (wgan_gp --data photos)`", flat("README.md"))
    assert words
    small = ["--set", "encoder_decoder.width=4", "--set", "patch_discriminator.width=4"]
    done = invoke("check", *shlex.split(words[1]), *small)
    assert done.exit_code == 0, done.output
    assert done.stdout.rstrip().endswith("ok")


@pytest.mark.parametrize("name", ["r3gan", "sngan", "bce_gan"])
def test_the_other_games_differ_from_wgan_gp_in_the_game_alone(name: str) -> None:
    pair = (side(ROOT / "recipes" / "wgan_gp.toml"), side(ROOT / "recipes" / f"{name}.toml"))
    changed = {change.key.removeprefix("plugins.") for change in difference(*pair)}
    game = {"wasserstein", "gradient_penalty", "relativistic_paired", "r1", "r2", "hinge"}
    assert changed <= game | {"spectral_norm", "bce", "label_smoothing"}


def test_the_readme_names_the_python_that_the_package_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = project["requires-python"].removeprefix(">=")
    assert f"Python {asked} or newer" in flat("README.md")
    assert project["license"] in PAGES["README.md"].read_text()


def test_training_opens_no_connection(
    folder: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    data = ["--set", "dead_leaves=false", "--set", "builtin={ crop = 16 }"]
    done = invoke("run", tiny, *data, "--set", "iterations=1", "--runs", tiny.parent / "runs")
    assert done.exit_code == 0, done.output


def test_only_what_fetches_can_open_a_connection() -> None:
    names = r"urllib\.request|http\.client|ftplib|requests|httpx|urllib3|aiohttp|torch\.hub"
    names += "|huggingface_hub|fsspec|s3fs"
    client = re.compile(
        rf"^\s*(import|from) ({names})\b|load_state_dict_from_url|create_connection"
    )
    files = [*(ROOT / "ganlab").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]
    texts = {file.relative_to(ROOT).as_posix(): file.read_text() for file in files}
    able = {name for name, text in texts.items() if any(map(client.search, text.splitlines()))}
    assert able == {
        "ganlab/download.py", "ganlab/hub/generator.py", "ganlab/hub/transfer.py",
        "ganlab/images/ranges.py",
    }  # fmt: skip
    users = {name for name, text in texts.items() if re.search(r"\bRanges\(", text)}
    assert users == {
        "ganlab/commands/index_shards.py", "ganlab/commands/shard_images.py",
        "ganlab/commands/verify_shards.py", "plugins/ganlab_plugins/image_shards.py",
    }  # fmt: skip
    users = {name for name, text in texts.items() if "ganlab.download" in text}
    assert users == {"ganlab/commands/fetch.py"}
    users = {name for name, text in texts.items() if "ganlab.hub" in text}
    own = {name for name in users if name.startswith("ganlab/hub/")}
    assert users - own == {"ganlab/api.py", "ganlab/cli/hub.py"}


def test_a_missing_file_of_weights_is_named_with_its_command_and_not_fetched(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    done = invoke("check", folder / "game.toml", "--set", "perceptual_loss={}")
    assert done.exit_code == 2
    assert "`ganlab weights fetch vgg19` gets it (548.1 MiB)" in done.stderr
    assert invoke("weights", "list").exit_code == 0


def test_every_loss_and_penalty_has_tests_of_its_own() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    hooks = {"generator_loss", "discriminator_loss", "penalty"}
    losses = [p["name"] for p in describe_plugins() if hooks & set(p["hooks"])]
    assert len(losses) > 20
    for name in losses:
        plugin = find_plugin(name, Origin(None, text=name))[0]
        imported = rf"import .*\b{plugin.__name__}\b|\b{plugin.__name__}\("
        assert re.search(imported, tests), name


# --- docs/reference/recipes.md -------------------------------------------------------------------


def test_another_order_of_losses_changes_the_last_digits_only(folder: Path) -> None:
    lines = GAME.replace("iterations = 20", "iterations = 3").splitlines()
    orders = {"first": lines, "second": [*lines[:9], *reversed(lines[9:])]}
    weights = []
    for name, order in orders.items():
        (folder / f"{name}.toml").write_text("\n".join(order) + "\n")
        assert invoke("run", folder / f"{name}.toml", "--runs", folder / "runs").exit_code == 0
        weights.append(load_file(folder / "runs" / f"{name}-1" / "generator.safetensors"))
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=0, atol=1e-5)


def test_a_list_is_replaced_as_a_whole(tmp_path: Path) -> None:
    base = "iterations = 1\n[plugins]\nlearning_rate_schedule = { milestones = [1, 2, 3] }\n"
    (tmp_path / "base.toml").write_text(base)
    (tmp_path / "child.toml").write_text(
        'extends = "base.toml"\n[plugins]\nlearning_rate_schedule = { milestones = [9] }\n'
    )
    options = read_recipe(tmp_path / "child.toml").values["plugins"]["learning_rate_schedule"]
    assert options["milestones"] == [9]


def test_the_lines_shown_of_esrgan_are_in_the_recipe() -> None:
    shown = tomllib.loads(block("recipes.md", "pretraining = {"))
    shown |= shown.pop("plugins")
    plugins = read_recipe(ROOT / "recipes" / "div2k" / "esrgan.toml").values["plugins"]
    for name, options in shown.items():
        assert {key: plugins[name][key] for key in options} == options, name


def test_a_schedule_of_two_numbers_steps_in_one_iteration() -> None:
    weight = ganlab.Schedule.model_validate({"from": 1.0, "to": 0.01, "after": 5})
    assert [weight.at(number) for number in (0, 5, 6, 99)] == pytest.approx([1.0, 1.0, 0.01, 0.01])


def test_bfloat16_without_cuda_is_float32_and_says_so(folder: Path) -> None:
    options = ["--set", "precision=bfloat16", "--set", "iterations=1", "--device", "cpu"]
    done = invoke("run", folder / "game.toml", "--runs", folder / "bf16", *options)
    assert "bfloat16 is for CUDA; running in float32 here" in done.stderr
    plain = invoke("run", folder / "game.toml", "--runs", folder / "f32", *options[2:])
    assert plain.exit_code == done.exit_code == 0
    one, other = (folder / name / "game-1" / "stats.jsonl" for name in ("bf16", "f32"))
    assert one.read_bytes() == other.read_bytes()


def test_the_best_may_be_the_lowest(folder: Path) -> None:
    options = ["--set", "best_metric=hf_ratio", "--set", "best_is=lowest"]
    done = invoke("run", folder / "game.toml", "--runs", folder / "lowest", *options)
    assert done.exit_code == 0
    at = folder / "lowest" / "game-1"
    figures = {
        line["iteration"]: line["evaluation/hf_ratio"]
        for line in [*Log(at / "stats.jsonl")]
        if "evaluation/hf_ratio" in line
    }
    iteration, figure = json.loads((at / "status.json").read_text())["best"]
    assert figure == pytest.approx(min(figures.values()))
    assert figures[iteration] == min(figures.values())


def test_losses_are_read_from_the_device_when_a_report_is_due(run: Path) -> None:
    read = [line["iteration"] for line in [*Log(run / "timing.jsonl")]]
    # every six iterations, and before the evaluations and checkpoints after 8, 16 and 20
    assert read == [6, 8, 14, 16, 20]


def test_a_refused_recipe_leaves_no_run_folder_also_when_data_were_read(folder: Path) -> None:
    done = invoke(
        "run", folder / "game.toml", "--runs", folder / "none", "--set", "image_folder.crop=18"
    )
    assert done.exit_code == 2
    assert not (folder / "none").exists()


# --- docs/how-to/plugins.md ----------------------------------------------------------------------


def plugin_file(folder: Path, name: str, body: str, *imports: str) -> list[str]:
    """A file with a plugin of this body; returns the option that adds it to a recipe."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    head = "\n".join(["from ganlab import Plugin, hookimpl", *imports])
    code = f'{head}\n\n\nclass Shown(Plugin):\n    """A plugin."""\n\n{lines}\n'
    (folder / f"{name}.py").write_text(code)
    (folder / f"{name}.toml").write_text(f'{GAME}{name} = {{ use = "./{name}.py" }}\n')
    return [str(folder / f"{name}.toml")]


def test_the_chained_hook_of_the_page_changes_what_came_before(folder: Path) -> None:
    body = "\n".join(
        line.removeprefix("  ")
        for line in block("plugins.md", "@hookimpl(wrapper=True)").splitlines()
    )
    recipe = plugin_file(folder, "noisy", body, "import torch")
    cpu = torch.device("cpu")
    plain, noisy = (
        iterate(assemble(load_recipe(Path(r)), cpu)) for r in (folder / "game.toml", *recipe)
    )
    assert noisy["D/adversarial"] != plain["D/adversarial"]
    assert noisy["G/pixel_loss"] == plain["G/pixel_loss"]  # it is not on what D sees


def test_a_misspelt_hook_or_argument_is_refused_before_the_run_starts(folder: Path) -> None:
    hook = plugin_file(folder, "hook", "@hookimpl\ndef penality(self, real):\n    return {}")
    argument = plugin_file(folder, "arg", "@hookimpl\ndef penalty(self, reel):\n    return {}")
    for recipe, word in ((hook, "'penalty'"), (argument, "reel")):
        for command in ("check", "run"):
            refused = invoke(command, *recipe)
            assert refused.exit_code == 2
            assert word in refused.stderr


def test_a_run_prints_warnings_and_goes_on(folder: Path) -> None:
    body = "def warnings(self, others):\n    return [f'has {len(others)} others']"
    recipe = plugin_file(folder, "wary", body)
    done = invoke("run", *recipe, "--runs", folder / "warned", "--set", "iterations=1")
    assert done.exit_code == 0
    assert "warning: wary has 7 others" in done.stderr


def test_a_verdict_of_a_plugin_that_counts_failing_values() -> None:
    from ganlab.monitoring.verdicts import History

    history = History()
    failing = lambda value: value < 1  # noqa: E731
    for number, value in enumerate([3.0, 0.5, 0.4]):
        history.add(number, {"evaluation/my_figure": value})
    found = history.lasting("evaluation/my_figure", failing, 2, "higher")
    assert found == [(1, 0.5), (2, 0.4)]
    assert history.lasting("evaluation/my_figure", failing, 3, "higher") == []
    history.add(3, {"evaluation/my_figure": 0.9})  # it still rises
    assert history.lasting("evaluation/my_figure", failing, 2, "higher") == []


def test_everything_that_a_plugin_may_define_is_named_on_its_pages() -> None:
    text = PAGES["plugins.md"].read_text() + PAGES["contract.md"].read_text()
    for name in ("per_sample", "images_only", "capturable", "warnings", "state_dict", "verdicts"):
        assert name in text
        assert hasattr(Plugin, name) or hasattr(hookspecs, name) or name == "state_dict"


# --- docs/explanation/performance.md -------------------------------------------------------------


def test_an_iteration_calls_hooks_as_often_as_the_page_says(folder: Path) -> None:
    off = ["r1=false", "first=generator", "watch_every=0"]
    run = assemble(load_recipe(folder / "game.toml", off), torch.device("cpu"))
    calls: list[str] = []
    run.manager.add_hookcall_monitoring(lambda name, *_: calls.append(name), lambda *_: None)
    iterate(run)
    assert f"An iteration calls hooks {len(calls)} times" in flat("performance.md")


# --- docs/explanation/failures.md ----------------------------------------------------------------


def test_every_figure_of_the_table_is_logged(run: Path) -> None:
    table = PAGES["failures.md"].read_text().partition("| figure |")[2].partition("\n\n")[0]
    rows = [line.split("|") for line in table.splitlines()[2:]]
    # what a run on CUDA alone logs is held by test_execution.py
    cells = [row[1] for row in rows if not row[2].startswith(" on CUDA:")]
    assert len(cells) == len(rows) - 1
    names = []
    for cell in cells:
        first, *others = re.findall(r"`([^`]+)`", cell)
        prefix = first.partition("/")[0]
        names += [first, *(f"{prefix}/{other}" for other in others)]
    assert len(names) > 12
    logged = {name for line in [*Log(run / "stats.jsonl")] for name in line}
    for name in names:
        # gradient/<loss>: the name of any loss
        pattern = re.escape(name).replace("<loss>", ".+").replace("<a>,<b>", ".+,.+")
        assert any(re.fullmatch(pattern, each) for each in logged), name


def test_steps_are_watched_early_and_then_at_the_interval(run: Path) -> None:
    lines = [*Log(run / "stats.jsonl")]
    watched = [line["iteration"] for line in lines if "gradient/G/pixel_loss" in line]
    # 1, 2, 4, 8 and 16 iterations after the first, and every seventh
    assert watched == [2, 3, 5, 7, 9, 14, 17]


def test_without_watching_health_is_measured_at_evaluations_only(folder: Path) -> None:
    options = ["--set", "watch_every=0", "--set", "iterations=16"]
    done = invoke("run", folder / "game.toml", "--runs", folder / "unwatched", *options)
    assert done.exit_code == 0
    lines = [*Log(folder / "unwatched" / "game-1" / "stats.jsonl")]
    assert not any(name.startswith("gradient/") for line in lines for name in line)
    healthy = [line["iteration"] for line in lines if "health/spread" in line]
    assert healthy == [8, 16]


# --- docs/explanation/architecture.md ------------------------------------------------------------


def test_the_picture_of_the_house_has_every_file_and_folder() -> None:
    shown = block("architecture.md", "hookspecs.py       the contract")
    names = set(re.findall(r"^  (\w+(?:\.py|/))", shown, flags=re.MULTILINE))
    files = [path for path in (ROOT / "ganlab").rglob("*") if path.is_file()]
    parts = [path.relative_to(ROOT / "ganlab").parts for path in files]
    parts = [part for part in parts if "__pycache__" not in part]
    there = {part[0] if len(part) == 1 else f"{part[0]}/" for part in parts}
    there = {name for name in there if name.endswith((".py", "/"))}
    assert names == there - {"__init__.py", "__main__.py"}


def test_backward_and_optimizer_steps_happen_below_descend_alone() -> None:
    steps = re.compile(r"\.backward\(|optimizer\.step\(")
    files = [*(ROOT / "ganlab").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]
    found = {path.name for path in files if steps.search(path.read_text())}
    # shared_forward.py divides the backward pass; plain.py is the bare loop of a benchmark
    assert found <= {"run.py", "shared_forward.py", "plain.py"}


def test_two_seeds_that_share_32_bits_share_a_stream_of_the_cpu() -> None:
    one, other = (torch.Generator().manual_seed(5 + add) for add in (0, 2**32))
    assert torch.equal(torch.rand(3, generator=one), torch.rand(3, generator=other))


def test_a_checkpoint_holds_no_state_of_a_random_generator(run: Path) -> None:
    path = max((run / "checkpoints").glob("*.pt"))
    state = torch.load(path, weights_only=True)
    known = {"iteration", "best", "scores", "bicubic", "game_began", "threads", "networks"}
    assert known | {"plugins"} <= state.keys()
    size = torch.get_rng_state().numel()

    def tensors(value: Any) -> list[torch.Tensor]:
        if isinstance(value, torch.Tensor):
            return [value]
        inner = value.values() if isinstance(value, dict) else value
        return [t for v in inner for t in tensors(v)] if isinstance(value, dict | list) else []

    assert all(t.dtype != torch.uint8 or t.numel() != size for t in tensors(state))


def test_a_generator_loss_that_names_logits_is_refused_without_a_discriminator(
    folder: Path,
) -> None:
    body = "@hookimpl\ndef generator_loss(self, fake_logits):\n    return {'G/x': 0}"
    recipe = plugin_file(folder, "logits", body)
    drop = ["patch_discriminator=false", "bce=false", "r1=false", "d_steps=0"]
    refused = invoke("check", *recipe, *(word for one in drop for word in ("--set", one)))
    assert refused.exit_code == 2
    assert "reads the discriminator's logits" in refused.stderr


def test_a_page_is_renewed_while_that_takes_a_hundredth_of_the_time(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ganlab import live_page
    from ganlab.runs.folder import RunFolder

    clock, written = [1000.0], []
    monkeypatch.setattr(live_page.time, "monotonic", lambda: clock[0])

    def write(path: Path) -> None:
        written.append(clock[0])
        clock[0] += 2  # seconds that the page takes

    monkeypatch.setattr("ganlab.report.report_run", write)
    page = live_page.Page(RunFolder(run), journal=None)  # type: ignore[arg-type]
    for seconds in (0, 10, 189, 2, 500):
        clock[0] += seconds
        page.renew()
    assert written == [1000.0, 1203.0, 1705.0]


# --- docs/reference/methods.md -------------------------------------------------------------------


def weights_files() -> list[tuple[str, str, str]]:
    """(file, plugin, options) of each row of the table of published weights."""
    table = PAGES["methods.md"].read_text().partition("| file | for |")[2].partition("\n\n")[0]
    rows = []
    for line in table.splitlines()[2:]:
        file, users = line.split("|")[1:3]
        name = re.findall(r"`([^`]+)`", file)[0]
        for part in users.split(","):
            plugins, _, words = part.partition(" with ")
            option = words.strip(" `")
            rows += [(name, plugin, option) for plugin in re.findall(r"`(\w+)`", plugins)]
    return rows


@pytest.mark.parametrize(("file", "plugin", "options"), weights_files())
def test_a_plugin_names_the_missing_file_of_the_table(
    file: str, plugin: str, options: str, folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path))
    extra = f"{plugin}={{ {options} }}"
    crop = "image_folder.crop=64"
    refused = invoke("check", folder / "game.toml", "--set", extra, "--set", crop)
    assert refused.exit_code == 2, refused.output
    assert str(tmp_path / "weights" / file) in refused.stderr


# --- commands ------------------------------------------------------------------------------------


def commands_with_overrides() -> list[tuple[str, list[str]]]:
    """(recipe, its --set options) of each command that a page shows."""
    found = []
    for page in PAGES.values():
        text = page.read_text().replace("\\\n", " ")
        for line in re.findall(r"^ganlab .*recipes/.*--set .*$", text, flags=re.MULTILINE):
            words = shlex.split(line, comments=True)
            recipe = next(word for word in words if word.endswith(".toml"))
            overrides = [b for a, b in pairwise(words) if a == "--set"]
            found.append((recipe, overrides))
    return found


@pytest.mark.parametrize(("recipe", "overrides"), commands_with_overrides())
def test_the_overrides_of_a_command_shown_fit_its_recipe(recipe: str, overrides: list[str]) -> None:
    assert load_recipe(ROOT / recipe, overrides).plugins


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("3m", 180), ("1.5h", 5400), ("7", 7), ("0.5", 0.5)]
)
def test_a_duration_is_read_as_the_help_says(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


def test_the_help_of_device_names_every_kind() -> None:
    text = " ".join(invoke("run", "--help").stdout.split())
    assert "auto (CUDA if there is a device), cpu, cuda, cuda:N or mps" in text


def test_every_command_has_an_example_that_exists() -> None:
    for name, command in main.commands.items():
        text = command.help or ""
        for line in re.findall(r"Example: ganlab (.*)", text):
            words = line.split()
            known = {o for p in main.commands[words[0]].params for o in p.opts}
            assert {word for word in words if word.startswith("--")} <= known, (name, line)


def test_without_an_iteration_trace_shows_the_first_and_the_last(folder: Path) -> None:
    shown = invoke("trace", folder / "game.toml", "--json").stdout
    assert [one["iteration"] for one in json.loads(shown)] == [0, 19]


def test_bench_stores_nothing_but_the_trace(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--time", "0.1s", "--trace", "t.json"]
    assert invoke("bench", folder / "game.toml", *options).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]


def test_an_unexpected_error_of_a_run_ends_with_exit_code_1(folder: Path) -> None:
    recipe = plugin_file(
        folder, "raises", "@hookimpl\ndef iteration_end(self):\n    raise ValueError('oops')"
    )
    done = CliRunner().invoke(main, ["run", *recipe, "--runs", str(folder / "raised")])
    assert done.exit_code == 1
    status = json.loads((folder / "raised" / "raises-1" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 1)
