"""What the demo's commands print, for the README: runs the demo and keeps its training and each command's stdout.

    python benchmarks/demo_record.py --json benchmarks/results/demo.json [--dir vitedge-demo]

On an idle machine of two cores; what the folder has already (images, the trained model) is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from vitedge import __version__
from vitedge.cli import demo
from vitedge.files import write_json

# Of several builds one is shown.
SHOWN = ("compress", "build --target onnxruntime --precision int8", "bench")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--dir", type=Path, default=Path("vitedge-demo"))
    parser.add_argument("--minutes", type=float, default=2.0)
    o = parser.parse_args()
    started = time.monotonic()
    if not (o.dir / "trained" / "model.safetensors").is_file():
        from vitedge.train.scratch import train_small_vit

        if not (o.dir / "shapes").exists():
            demo.draw_splits(o.dir / "shapes", 0)
        write_json(o.dir / "training.json", train_small_vit(o.dir / "shapes", o.dir / "trained", minutes=o.minutes))
    found: list[dict[str, Any]] = []
    for arguments in demo.commands(o.dir):
        text = shlex.join(["vitedge", *arguments])
        print(f"$ {text}", flush=True)
        began = time.monotonic()
        environment = {**os.environ, "COLUMNS": "118"}
        done = subprocess.run(
            [sys.executable, "-m", "vitedge", *arguments],
            check=True,
            text=True,
            stdout=subprocess.PIPE,
            env=environment,
        )
        shown = text.startswith(tuple(f"vitedge {name}" for name in SHOWN))
        seconds = time.monotonic() - began
        found.append({"command": text, "shown": shown, "seconds": seconds, "output": done.stdout})
    training = json.loads((o.dir / "training.json").read_text())
    facts = {"vitedge": __version__, "processors": os.cpu_count(), "seconds": time.monotonic() - started}
    write_json(o.json, {**facts, "training": training, "commands": found})


if __name__ == "__main__":
    main()
