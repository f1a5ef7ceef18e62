"""The command line, as a user calls it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def vitedge(folder: Path, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs the command line in that folder."""
    done = subprocess.run(
        [sys.executable, "-m", "vitedge", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"},
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
