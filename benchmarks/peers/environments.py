"""An environment for each peer, made once: their packages pin each other's versions apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from catalogue import ENVIRONMENTS


def python_of(name: str, folder: Path) -> tuple[Path | None, str]:
    """(the interpreter of that environment, what was installed or why it could not be)."""
    if name == "vitedge":
        return Path(sys.executable), ""
    home = folder / name
    python, marker = home / "bin" / "python", home / ".installed"
    if not marker.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        command = [str(python), "-m", "pip", "install", "--quiet", *ENVIRONMENTS[name]]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return None, "does not install: " + (done.stderr.strip().splitlines() or ["?"])[-1]
        marker.write_text(" ".join(ENVIRONMENTS[name]))
    return python, ""


def versions_of(python: Path) -> dict[str, str]:
    """The packages that matter for a comparison, and their versions in that environment."""
    code = (
        "import importlib.metadata as m, json\n"
        "names = 'torch onnx onnxruntime openvino nncf optimum onnx-neural-compressor'.split()\n"
        "found = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({n: found[n] for n in names if n in found}))"
    )
    import json

    return json.loads(subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout)
