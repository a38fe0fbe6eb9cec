"""Marks that several test files share."""

import sys

import pytest

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
