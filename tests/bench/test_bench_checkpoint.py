"""What a checkpoint costs: the copy that training waits for, and all of it, on the disk."""

from pathlib import Path

import pytest

from ganlab.checkpoint import write_checkpoint
from ganlab.state import state_of


@pytest.mark.benchmark(group="a checkpoint of SRResNet")
@pytest.mark.parametrize("part", ["what training waits for", "all of it"])
def test_a_checkpoint(benchmark, build, tmp_path: Path, part: str) -> None:
    run = build("srresnet.width=64", "srresnet.num_blocks=16")
    batch = run.hook.sample_batch(batch_size=2, device=run.device)
    run.hook.generator_step(run=run, batch=batch)  # from then on Adam has a state
    if part == "all of it":
        assert (
            benchmark(lambda: write_checkpoint(state_of(run), tmp_path)).stat().st_size
            > 3 * 4 * 1_500_000
        )
    else:
        assert benchmark(state_of, run)["iteration"] == 0
