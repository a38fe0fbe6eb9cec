"""Fixtures for the tests of a plugin; pytest loads them wherever ganlab is installed."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from ganlab import Run
    from ganlab.testing import GoldenLogits, LinearCritic


@pytest.fixture
def tiny_run() -> "Callable[..., Run]":
    """Makes a small run with plugins: `run = tiny_run(MyPenalty(weight=2.0), batch_size=1)`."""
    from ganlab import testing

    return testing.tiny_run


@pytest.fixture
def linear_critic() -> "Callable[..., LinearCritic]":
    """Makes a critic of known slope: `linear_critic(3.0)`."""
    from ganlab import testing

    return testing.LinearCritic


@pytest.fixture
def golden_logits() -> "GoldenLogits":
    """Real and fake logits, [4, 1], for which losses have been published."""
    from ganlab import testing

    return testing.GoldenLogits()
