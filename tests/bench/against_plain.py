"""ganlab beside the plain loop of `plain.py`: seconds an iteration, memory, start-up.

Every contestant is a process of its own; a round runs each once, in an order that changes from
round to round, and the statement is the median over rounds of the ratio within a round.

    python tests/bench/against_plain.py --rounds 3                 # SRResNet + VGG-128, batch 16
    python tests/bench/against_plain.py --rounds 5 --tiny          # where overhead shows
    python tests/bench/against_plain.py --whole --batch 4          # checkpoints and evaluations too

With `--whole` the plain loop saves all its state by torch.save, in the loop, at the iterations at
which ganlab writes a checkpoint. Only ganlab evaluates, which is when its memory was highest.
"""

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
PHOTOGRAPHS = ("rocket.jpg", "hubble_deep_field.jpg", "retina.jpg", "brick.png", "grass.png")
RECIPE = """\
iterations = {iterations}
batch_size = {batch_size}
first = "generator"
share_forward = {share}
compile = "{compile}"
watch_every = 0
evaluate_every = {evaluate_every}
checkpoint_every = {checkpoint_every}
report_every = {report_every}

[plugins]
image_folder = {{ path = "photographs", evaluation_path = "held_out", crop = {size} }}
bicubic = {{ scale = 4 }}
srresnet = {{ norm = "none", width = {width}, num_blocks = {num_blocks} }}
vgg_discriminator = {{ width = {d_width} }}
bce = {{ weight = 0.005 }}
pixel_loss = {{ weight = 1.0 }}
ema = {{ decay = 0.999, warmup = false }}
clock = {{ use = "./bystander.py", writes = true }}
{others}
"""
HELD_OUT = ("chelsea.png", "coffee.png")
FULL = {"width": 64, "num_blocks": 16, "d_width": 64, "size": 128, "batch_size": 16}
TINY = {"width": 4, "num_blocks": 1, "d_width": 4, "size": 128, "batch_size": 4}


def prepare(folder: Path, config: dict) -> None:
    """What the contestants read: photographs, the plain loop's configuration, the recipes."""
    data = Path(importlib.util.find_spec("skimage").origin).parent / "data"
    for part, names in (("photographs", PHOTOGRAPHS), ("held_out", HELD_OUT)):
        (folder / part).mkdir()
        for name in names:
            shutil.copy(data / name, folder / part)
    shutil.copy(HERE / "bystander.py", folder)
    images = [str(folder / "photographs" / name) for name in PHOTOGRAPHS]
    files = {"images": images, "checkpoint": str(folder / "plain.pt")}
    (folder / "plain.json").write_text(json.dumps(config | files))
    ten = "\n".join(f'bystander_{i} = {{ use = "./bystander.py" }}' for i in range(9))
    for name, share, compile_, others in (("on", "true", "auto", ""), ("off", "false", "off", ten)):
        text = RECIPE.format(**config, share=share, compile=compile_, others=others)
        (folder / f"{name}.toml").write_text(text)


def measure(contestant: str, folder: Path) -> dict:
    """Run one contestant; seconds to the first iteration and of each, peak memory in MiB."""
    times = folder / "times.json"
    if contestant == "plain":
        command = [sys.executable, HERE / "plain.py", folder / "plain.json"]
    else:
        command = [sys.executable, "-m", "ganlab", "run", folder / f"{contestant}.toml"]
        command += ["--runs", folder / "runs", "--device", "cpu"]
    environment = os.environ | {"GANLAB_TIMES": str(times), "GANLAB_CACHE": str(folder / "cache")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # or every module is compiled at every start
    began = time.time()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout if contestant == "plain" else times.read_text())
    first, *ends = found["times"]
    steps = [b - a for a, b in zip([first, *ends], ends, strict=False)]
    shutil.rmtree(folder / "runs", ignore_errors=True)
    return found | {"start": first - began, "steps": steps}


def configure(given: argparse.Namespace) -> dict:
    """The configuration that the contestants share."""
    config = dict(TINY if given.tiny else FULL)
    config["iterations"] = given.iterations or (12 if given.whole else 300 if given.tiny else 5)
    config["checkpoint_every"] = 2 if given.whole else 1_000_000
    config["evaluate_every"] = 6 if given.whole else 1_000_000
    config["batch_size"] = given.batch or config["batch_size"]
    config["report_every"] = 50
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=0)
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--whole", action="store_true")
    given = parser.parse_args()
    config = configure(given)
    dropped = config["iterations"] // 5
    contestants = ["plain", "on"] if given.whole else ["plain", "on", "off"]
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, config)
        for contestant in contestants:  # images decoded, modules compiled, caches made
            measure(contestant, folder)
        for number in range(given.rounds):
            first = number % len(contestants)
            order = contestants[first:] + contestants[:first]
            found = {contestant: measure(contestant, folder) for contestant in order}
            rounds.append(found)
            load = os.getloadavg()[0]
            seconds = {n: median(f["steps"][dropped:]) for n, f in found.items()}
            shown = "  ".join(f"{n} {1000 * seconds[n]:.2f} ms" for n in contestants)
            print(f"round {number}: {shown}  load {load:.1f}", flush=True)
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
          f"OMP_NUM_THREADS {threads}, {config}")  # fmt: skip
    summarise(rounds, dropped, config if given.whole else {})


def summarise(rounds: list[dict], dropped: int, whole: dict) -> None:
    """Medians, and ratios to the plain loop within each round.

    :param whole: the configuration when checkpoints and evaluations are measured, else empty.
    """
    checkpoint, evaluation = (whole.get(f"{what}_every", 0) for what in ("checkpoint", "evaluate"))
    figures = [
        ("ms an iteration", lambda f: 1000 * median(f["steps"][dropped:])),
        ("s to first iteration", lambda f: f["start"]),
        ("peak MiB of iterations", lambda f: f["peaks"][checkpoint - 1 if whole else -1]),
    ]
    if whole:
        figures += [
            ("peak MiB with checkpoints", lambda f: f["peaks"][evaluation - 1]),
            ("peak MiB of the whole run", lambda f: f["peaks"][-1]),
            ("s that a checkpoint held training up, the first", lambda f: f["held_up"][0]),
            (
                "s that a checkpoint held training up, later ones",
                lambda f: median(f["held_up"][1:]),
            ),
        ]
        copies = [min(found["on"]["copies"]) for found in rounds]
        faults = [max(found["on"]["faults"]) for found in rounds]
        print(f"s to copy as many bytes {median(copies):.3f}, page faults at most {max(faults)}")
    for what, value in figures:
        print(what)
        for contestant in rounds[0]:
            values = [value(found[contestant]) for found in rounds]
            ratios = [v / value(found["plain"]) for v, found in zip(values, rounds, strict=True)]
            more = [v - value(found["plain"]) for v, found in zip(values, rounds, strict=True)]
            print(
                f"  {contestant:<6} median {median(values):>9.2f}   of plain: ratio "
                f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}), "
                f"difference {median(more):+.2f}"
            )


if __name__ == "__main__":
    main()
