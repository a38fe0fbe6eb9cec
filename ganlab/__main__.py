"""Run the command line: `python -m ganlab`."""

import sys
from pathlib import Path

if not sys.flags.safe_path and Path(sys.path[0]) == Path.cwd():
    del sys.path[0]  # what lies in the current folder must not pass for torch or numpy

from ganlab.cli import main

if __name__ == "__main__":
    main()
