"""The table of speeds on a GPU: the whole script, with tiny networks on the CPU."""

import json
from pathlib import Path

import gpu_table
import pytest
import torch
from gpu_table import Cell


@pytest.fixture(autouse=True)
def _cache_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path))  # put back after the script has changed it


def test_the_table_goes_on_after_a_cell_that_fails(monkeypatch, capsys, tmp_path: Path) -> None:
    def assemble(recipe, device):
        if "rrdb" in recipe.plugins and "r1" in recipe.plugins:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if "rrdb" in recipe.plugins and "gradient_penalty" in recipe.plugins:
            raise RuntimeError("a | b\nc")
        return real_assemble(recipe, device)

    real_assemble = gpu_table.assemble
    monkeypatch.setattr(gpu_table, "assemble", assemble)
    file = tmp_path / "table.json"
    code = gpu_table.main(["--device", "cpu", "--smoke", "--ways", "graphs-bf16", "-o", str(file)])
    assert code == 1  # for the second fault; want of memory is a result
    cells = {(c["generator"], c["game"]): c for c in json.loads(file.read_text())["cells"]}
    assert cells["RRDB-23", "GAN + R1"]["fault"] == "out of memory"
    assert cells["RRDB-23", "WGAN-GP"]["fault"] == "RuntimeError: a | b"
    timed = [cell for cell in cells.values() if not cell["fault"]]
    assert len(timed) == 4
    for cell in timed:
        assert len(cell["seconds"]) == gpu_table.ROUNDS and min(cell["seconds"]) > 0
        assert cell["data_seconds"] > 0 and cell["peak"] > 2**20
        assert 'compile = "graphs" is for CUDA; running eager here' in cell["notes"]
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 2 + 6
    assert {row.replace("\\|", "").count("|") for row in rows} == {rows[0].count("|")}
    assert any("| RRDB-23 | GAN + R1 | 2 | graphs-bf16 | out of memory |" in row for row in rows)


def test_what_there_is_no_time_for_is_told(capsys) -> None:
    assert gpu_table.main(["--device", "cpu", "--smoke", "--budget", "0"]) == 0
    assert capsys.readouterr().out.count("left out: no time") == len(gpu_table.WAYS) * 6


def test_time_runs_out_in_the_middle_of_a_trial_of_a_quicker_way() -> None:
    def busy() -> None:
        try:
            while True:
                sum(range(1000))
        except Exception:  # as `ganlab.speed.trial.tried` does
            pytest.fail("taken for a fault of the quicker way")

    with pytest.raises(gpu_table.OutOfTimeError), gpu_table.at_most(0.05):
        busy()


def test_the_whole_table_compiles_networks_at_one_batch_size_only() -> None:
    cells = gpu_table.all_cells([16, 32, 64], list(gpu_table.WAYS))
    assert len(cells) == len({cell.label for cell in cells}) == 2 * (3 * 3 + 2 * 3) + 2 * 3
    assert {cell.batch for cell in cells if cell.way == "networks-bf16"} == {16}
    assert set(gpu_table.FLOORS) <= {(c.generator, c.game, c.batch) for c in cells}


@pytest.mark.parametrize(
    ("card", "way", "shares"),
    [
        ("NVIDIA H200", "graphs-bf16", ["25%", "56%"]),
        ("NVIDIA H200", "eager-fp32", ["", ""]),
        ("NVIDIA H100 80GB HBM3", "graphs-bf16", []),
    ],
)
def test_shares_of_the_floor_are_those_of_bf16_on_an_h200(card, way, shares) -> None:
    cell = Cell("SRResNet-16", "GAN", 16, way, fault="", data_seconds=4e-4, peak=3 * 2**29)
    cell.seconds = [9e-3, 16 / 3865, 1e-3]  # the median: 3,865 images/s
    *_, row = gpu_table.table([cell], card).splitlines()
    found = [part.strip() for part in row.strip("|").split("|")]
    assert found == [
        "SRResNet-16", "GAN", "16", way, "3,865", "4.14", *shares, "9.7%", "1.50", ""
    ]  # fmt: skip
