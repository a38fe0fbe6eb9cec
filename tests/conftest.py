"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photographs and golden LR images; the test is skipped where it is absent.

    Set GANLAB_TEST_DATA, or put the folder at ../shared/data beside the checkout.
    """
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("GANLAB_TEST_DATA", default))
    if not (folder / "bicubic.csv").is_file():
        pytest.skip(f"no super-resolution test data at {folder} (set GANLAB_TEST_DATA)")
    return folder
