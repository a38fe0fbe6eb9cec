"""`--gpus N`: the same command again as N processes, by torchrun's launcher."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any
from uuid import uuid4

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ganlab.errors import RecipeError
from ganlab.stopping import INTERRUPTED, SIGTERMED

_SAVING = 600  # seconds from a signal until a process that still saves is killed


def check_gpus(count: int, device: str) -> None:
    """Refuse more processes than this machine has GPUs, where they want one each.

    :raises RecipeError: with the number that it has.
    """
    if device == "cpu":
        return
    there = torch.cuda.device_count()
    if count > there:
        raise RecipeError(
            f"--gpus {count}: torch finds {there} CUDA device{'s' * (there != 1)} on this machine; "
            "name as many at most, or --device cpu for processes on the CPU"
        )


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run `ganlab` with these arguments as `count` processes; returns the exit code of the first.

    A signal to this process reaches them all.
    """
    for name in [*logging.root.manager.loggerDict]:
        if name.startswith("torch.distributed"):  # the run tells its faults itself
            logging.getLogger(name).setLevel(logging.CRITICAL)
    known = {field.name for field in fields(LaunchConfig)}
    options: dict[str, Any] = {"shutdown_timeout": _SAVING} if "shutdown_timeout" in known else {}
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        **options,
    )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    try:
        elastic_launch(config, sys.executable)("-m", "ganlab", *arguments)
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        if (own := codes.get(0, 0)) < 0:
            print(
                f"the process that led the run was ended by {signal.Signals(-own).name}; resumed, "
                "the run goes on from its last checkpoint",
                file=sys.stderr,
            )
        return code_of(codes)
    except SignalException as error:
        return INTERRUPTED if error.sigval.name == "SIGINT" else SIGTERMED
    return 0


def code_of(codes: dict[int, int]) -> int:
    """The exit code of a run, from those of the processes that did not end with 0, by rank.

    Rank 0 says how the run ended. Others end because it did, or made it fail.
    """
    own = codes.get(0)
    return own if own is not None and own > 0 else 1
