"""TAB in a shell: it knows recipes, runs, plugins and `--set` keys, and answers without torch."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from ganlab.cli import main
from ganlab.cli.completion import _Bash
from ganlab.commands.limits import limits_of
from ganlab.recipe.discovery import installed
from ganlab.recipe.model import Recipe
from ganlab.recipe.outline import options_of

Offered = Callable[[str], list[str]]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, and runs of which `second` was begun last."""
    monkeypatch.chdir(tmp_path)
    recipe = 'iterations = 1\n[plugins]\nema = {}\nl1 = { use = "pixel_loss" }\n'
    (tmp_path / "mine.toml").write_text(recipe)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "more").mkdir()
    for number, name in enumerate(("first-1", "second-1")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        file = tmp_path / "runs" / name / "recipe.toml"
        file.write_text(recipe)
        os.utime(file, (number, number))
    return tmp_path


@pytest.fixture
def offered(project: Path, monkeypatch: pytest.MonkeyPatch) -> Offered:
    """What is offered at the end of a line; of a word with "=", ":" or "@" the rest, as in bash."""

    def complete(line: str) -> list[str]:
        monkeypatch.setenv("COMP_WORDS", line)
        shell = _Bash(main, {}, "ganlab", "_GANLAB_COMPLETE")
        return [each.partition(",")[2] for each in shell.complete().split("\n") if each]

    return complete


def test_recipes_are_files_and_names_of_those_that_come_with_ganlab(offered: Offered) -> None:
    assert offered("ganlab check wgan") == ["wgan_gp"]
    assert offered("ganlab check toy/ring_r3") == ["toy/ring_r3gan"]
    found = offered("ganlab run ")
    assert found[:3] == ["mine.toml", "more/", "runs/"]
    assert "notes.txt" not in found
    assert offered("ganlab run runs/first-1/") == ["runs/first-1/recipe.toml"]


def test_a_sweep_takes_a_recipe_and_then_a_file(offered: Offered) -> None:
    assert "wgan_gp" in offered("ganlab sweep ")
    assert offered("ganlab sweep mine.toml ") == ["mine.toml", "more/", "runs/"]
    assert offered("ganlab sweep mine.toml mine.toml --set ema.dec") == ["ema.decay="]


def test_runs_are_offered_by_name_the_last_first(offered: Offered) -> None:
    assert offered("ganlab resume ") == ["second-1", "first-1", "@last"]
    assert offered("ganlab report f") == ["first-1"]
    assert offered("ganlab resume @") == ["last"]
    assert offered("ganlab resume runs/s") == ["runs/second-1"]
    assert {"mine.toml", "first-1", "@last"} <= {*offered("ganlab compare ")}


def test_keys_are_those_of_the_recipe_or_run_that_the_line_names(offered: Offered) -> None:
    assert offered("ganlab run mine.toml --set l1.") == [
        "l1.kind=", "l1.delta=", "l1.weight=", "l1.sharpen=",
    ]  # fmt: skip
    assert offered("ganlab resume first-1 --set ema.d") == ["ema.decay="]
    assert offered("ganlab resume @last --set ema.d") == ["ema.decay="]
    assert offered("ganlab run wgan_gp --set gradient_penalty.w") == ["gradient_penalty.weight="]
    assert offered("ganlab check mine.toml --set seed=1 --set batch") == ["batch_size="]
    assert "ema.decay=" not in offered("ganlab run nowhere.toml --set ")
    assert "iterations=" in offered("ganlab run nowhere.toml --set ")


def test_what_ablate_leaves_out_or_varies_is_of_the_recipe(offered: Offered) -> None:
    assert offered("ganlab ablate mine.toml --without ") == ["ema", "l1"]
    assert offered("ganlab ablate mine.toml --without ema --vary l1.k") == ["l1.kind="]


def test_a_value_is_offered_where_only_some_are_allowed(offered: Offered) -> None:
    assert offered("ganlab run mine.toml --set compile=") == ["auto", "off", "networks", "graphs"]
    assert offered("ganlab run mine.toml --set compile=o") == ["off"]
    assert offered("ganlab run mine.toml --set l1.kind=m") == ["mse"]
    assert offered("ganlab run mine.toml --set tf32=") == ["true", "false"]
    assert offered("ganlab run mine.toml --set seed=") == []


def test_plugins_and_commands_are_offered(offered: Offered) -> None:
    assert offered("ganlab plugins gradient_p") == ["gradient_penalty"]
    assert "gradient_difference" not in offered("ganlab plugins ")
    assert offered("ganlab plugins check gradient_p") == ["gradient_penalty", "gradient_p"]
    assert offered("ganlab plugins new mine --hook make_g") == ["make_generator"]
    assert offered("ganlab compl") == ["completion"]
    assert offered("ganlab recipes copy toy/ring_r3") == ["toy/ring_r3gan"]
    assert "Set5" in offered("ganlab data fetch Set")


@pytest.mark.parametrize("name", installed())
def test_the_source_of_a_plugin_shows_its_options(name: str) -> None:
    model = installed()[name].load()
    module, _, kind = installed()[name].value.partition(":")
    shown = {option.name: option for option in options_of(module, kind)}
    limits = limits_of(model)
    assert shown.keys() == limits.keys()
    for key, found in limits.items():
        if choices := found.get("one of"):
            assert set(map(str, choices)) <= {*shown[key].choices}, key


def test_the_source_of_the_settings_shows_them() -> None:
    shown = options_of("ganlab.recipe.model", "Recipe")
    assert [option.name for option in shown] == [*Recipe.model_fields]
    assert shown[0].meaning == "How many iterations the run has; there are no epochs"


def test_a_source_that_cannot_be_read_has_no_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_source.py").write_text("class X(:\n")
    (tmp_path / "turning_source.py").write_text("from turning_source import X\n")
    for module in ("broken_source", "turning_source", "no_such_source", "sys"):
        assert options_of(module, "X") == []


SCRIPTS = {
    "bash": (
        'eval "$(ganlab completion bash)"\n'
        'COMP_LINE="ganlab run mine.toml --set l1.kind=m"; COMP_POINT=${#COMP_LINE}\n'
        '_ganlab_completion ganlab 2>/dev/null; echo "${COMPREPLY[@]}"\n'
        'COMP_LINE="ganlab resu"; COMP_POINT=${#COMP_LINE}\n'
        '_ganlab_completion ganlab 2>/dev/null; echo "${COMPREPLY[@]}"\n'
        'COMP_LINE="ganlab run mine.toml --set l1.k"; COMP_POINT=${#COMP_LINE}\n'
        '_ganlab_completion ganlab 2>/dev/null; echo "${COMPREPLY[@]}"\n'
    ),
    "zsh": (
        "compdef() { }; compadd() { print -- ${@[-1]} ${plain[@]} }\n"
        "_describe() { print -r -- ${described[@]%%:*} ${(q+)@} }\n"
        'eval "$(ganlab completion zsh)"\n'
        "words=(ganlab run mine.toml --set l1.kind=m); CURRENT=5; _ganlab_completion\n"
        "words=(ganlab resu); CURRENT=2; _ganlab_completion\n"
        "words=(ganlab run mine.toml --set l1.k); CURRENT=5; _ganlab_completion\n"
    ),
    "fish": (
        "ganlab completion fish | source\n"
        'complete -C "ganlab run mine.toml --set l1.kind=m"\ncomplete -C "ganlab resu"\n'
        'complete -C "ganlab run mine.toml --set l1.k"\n'
    ),
}
ANSWERS = {
    "bash": ["mse", "resume", "l1.kind="],
    # in zsh, the arguments by which no space follows a key
    "zsh": [
        "plain l1.kind=mse",
        "resume -V unsorted described -U",
        "l1.kind= -V unsorted described -U -S ''",
    ],
    "fish": ["l1.kind=mse", "resume", "l1.kind="],
}


@pytest.mark.parametrize("shell", SCRIPTS)
def test_a_shell_completes_by_its_script(shell: str, project: Path) -> None:
    program = Path(sys.executable).parent
    if not shutil.which(shell) or not (program / "ganlab").exists():
        pytest.skip(f"needs {shell}, and the installed program")
    options = {"bash": ["--norc", "-c"], "zsh": ["-f", "-c"], "fish": ["--no-config", "-c"]}
    done = subprocess.run(
        [shell, *options[shell], SCRIPTS[shell]], cwd=project, capture_output=True, text=True,
        env=os.environ | {"PATH": f"{program}{os.pathsep}{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.stderr == ""
    assert [line.partition("\t")[0] for line in done.stdout.splitlines()] == ANSWERS[shell]


def test_a_shell_that_is_not_known_is_refused() -> None:
    result = CliRunner().invoke(main, ["completion", "tcsh"])
    assert result.exit_code == 2
    assert "'bash', 'zsh', 'fish'" in result.stderr


def test_help_and_completion_import_no_torch(project: Path) -> None:
    code = (
        "import sys; from click.testing import CliRunner; from ganlab.cli import main\n"
        "from ganlab.cli.completion import _Bash; import os\n"
        "def answers(*every):\n"
        "    for arguments in every:\n"
        "        assert CliRunner().invoke(main, arguments).exit_code == 0, arguments\n"
        "answers(['--help'], ['run', '--help'], ['completion', 'bash'])\n"
        "for line in ('plugins ', 'resume ', 'run wgan_gp --set ', 'resume first-1 --set '):\n"
        "    os.environ['COMP_WORDS'] = 'ganlab ' + line\n"
        "    assert _Bash(main, {}, 'ganlab', 'X').complete(), line\n"
        "assert not {'torch', 'pydantic', 'rich', 'numpy'} & {*sys.modules}\n"
        "answers(['recipes'], ['data', 'list'])\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stdout + done.stderr


@pytest.mark.long
def test_help_and_completion_answer_at_once(project: Path) -> None:
    """CPU time with bytecode, as an installed program has it: at most 0.4 s and 0.3 s."""
    resource = pytest.importorskip("resource")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPYCACHEPREFIX": str(project / "bytecode")}

    def seconds(*arguments: str, **more: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        code = "from ganlab.cli import main; main(prog_name='ganlab')"
        command = [sys.executable, "-c", code, *arguments]
        subprocess.run(command, env=environment | more, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds("--help") for _ in range(5)) < 0.4
    for line in ("ganlab run wgan_gp --set ", "ganlab resume ", "ganlab plugins "):
        more = {"COMP_WORDS": line, "_GANLAB_COMPLETE": "bash_complete"}
        assert min(seconds(**more) for _ in range(5)) < 0.3, line
