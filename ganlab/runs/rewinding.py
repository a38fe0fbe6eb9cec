"""What a sitting keeps of the logs: the lines up to the iteration after which it begins."""

import math
import sys
from pathlib import Path

from ganlab.files import whole
from ganlab.runs.reading import NONFINITE, Log, as_written, is_loss


def kept_lines(
    path: Path,
    iteration: int,
    known: tuple[int, str] | None = None,
    evaluates_again: bool = False,
    rolled_back: int = 0,
) -> bytes:
    """The lines of a log that a sitting keeps; later ones were written by a killed run.

    :param iteration: after which the sitting begins.
    :param known: how many bytes the log had at its checkpoint, and their sha256. Damage to them is
        told, and the damaged file is kept.
    :param evaluates_again: whether the evaluation of this iteration comes next: its lines are
        dropped too. A verdict at it stays, since it is not told twice.
    :param rolled_back: how often the run went back to a checkpoint; the verdicts that tell of it
        are kept.
    """
    tells_verdicts = path.name == "verdicts.jsonl"
    times = rolled_back if tells_verdicts else 0
    if not known or not as_written(path, *known):
        again = evaluates_again and path.name in ("stats.jsonl", "scores.jsonl")
        return _repaired(path, iteration, again, known is not None, times)
    if tells_verdicts:
        return _until(path, iteration, rolled_back=times)[0]
    return path.read_bytes()[: known[0]]


def _until(
    path: Path, iteration: int, again: bool = False, rolled_back: int = 0
) -> tuple[bytes, list[int]]:
    """The sound lines of a log up to an iteration, and the numbers of damaged ones among them.

    :param again: whether the evaluation of this iteration is done again: its line ends the log.
    :param rolled_back: lines are kept too that tell of this number of roll backs.
    """
    log, kept = Log(path), []
    damaged = 0
    for line, text in log.pairs():
        evaluates = not any(is_loss(name) or name.startswith(f"{NONFINITE}/") for name in line)
        late = line["iteration"] > iteration or (
            again and evaluates and line["iteration"] == iteration
        )
        if late and line.get("times", math.inf) > rolled_back:
            continue
        kept.append(text)
        damaged = len(log.damaged)  # later ones may be of later iterations
    return b"".join(kept), log.damaged[:damaged]


def _repaired(path: Path, iteration: int, again: bool, expected: bool, rolled_back: int) -> bytes:
    """The sound lines of a log up to an iteration. Damage is told, and the damaged file is kept.

    :param expected: whether the checkpoint says that the file was other than it is now.
    """
    content, damaged = _until(path, iteration, again, rolled_back)
    if not (damaged or expected):
        return content
    place = f"{path}:{damaged[0]}: damaged" if damaged else f"{path}: not as the run wrote it"
    if path.is_file():
        kept = path.with_name(f"{path.name}.damaged")
        with whole(kept) as file:
            file.write(path.read_bytes())
        place += f" (kept as {kept.name})"
    else:
        place = f"{path}: missing"
    print(
        f"{place}; the run goes on with the lines of it that can be read, and its report lacks the "
        "others",
        file=sys.stderr,
    )
    return content
