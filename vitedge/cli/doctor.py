"""`vitedge doctor`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from dataclasses import asdict
from typing import Annotated

import typer

from vitedge import __version__, targets
from vitedge.cli.console import out, print_json, print_table
from vitedge.tables import Table

# Package -> the extra that brings it.
_PACKAGES = {
    "torch": "compress",
    "torchvision": "compress",
    "onnx": "compress",
    "accelerate": "compress",
    "jinja2": "report",
}


def _version(package: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def command(json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False) -> None:
    """Shows what each target finds here."""
    probes = [targets.diagnose(name) for name in targets.names()]
    packages = {name: _version(name) for name in _PACKAGES}
    if json:
        print_json(
            {
                "vitedge": __version__,
                "python": platform.python_version(),
                "machine": platform.machine(),
                "packages": packages,
                "targets": [asdict(p) for p in probes],
            }
        )
        return
    out.print(f"vitedge {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    rows = [
        [
            p.target,
            p.can_build,
            p.can_run,
            p.device if p.can_run else None,
            ", ".join(f"{k} {v}" for k, v in p.versions.items()) or None,
            p.reason or None,
            p.fix or None,
        ]
        for p in probes
    ]
    columns = ["target", "builds", "runs", "on", "found", "what is missing", "to fix it"]
    print_table(Table("Targets", columns, rows))
    missing = sorted({extra for name, extra in _PACKAGES.items() if packages[name] is None})
    shown = [[name, version, _PACKAGES[name]] for name, version in packages.items()]
    print_table(Table("Optional packages", ["package", "version", "extra"], shown))
    if missing:
        out.print(f"To add what is missing: pip install 'vitedge\\[{','.join(missing)}]'")
