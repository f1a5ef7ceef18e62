"""What is installed here, and what each target finds."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from dataclasses import asdict, dataclass

from vitedge import __version__, targets
from vitedge.errors import EXTRAS, install_command
from vitedge.tables import Cell, Table
from vitedge.targets.base import Probe


@dataclass(frozen=True)
class Findings:
    """Versions of vitedge and Python, the machine, optional packages with their versions (None: not installed)."""

    vitedge: str
    python: str
    machine: str
    packages: dict[str, str | None]
    targets: list[Probe]

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        return asdict(self)

    @property
    def tables(self) -> list[Table]:
        """Of the targets, and of the optional packages."""
        columns = ["target", "builds", "runs", "on", "found"]
        rows: list[list[Cell]] = []
        lines = []
        for p in self.targets:
            found = ", ".join(f"{name} {version}" for name, version in p.versions.items())
            rows.append([p.target, p.can_build, p.can_run, p.device if p.can_run else None, found or None])
            lines += [f"{p.target}: {p.reason}"] if p.reason else []
            lines += [f"  to fix it: {p.fix}"] if p.fix else []
            lines += [f"{p.target}: {note}" for note in p.notes]
        packages: list[list[Cell]] = [[name, version, EXTRAS[name]] for name, version in self.packages.items()]
        extras = sorted({EXTRAS[name] for name, version in self.packages.items() if version is None})
        note = f"To add what is missing: {install_command(*extras)}" if extras else ""
        return [
            Table("Targets", columns, rows, "\n".join(lines)),
            Table("Optional packages", ["package", "version", "extra"], packages, note),
        ]


def examine() -> Findings:
    """What this machine has. Imports none of it."""
    probes = [targets.get(name).diagnose() for name in targets.names()]
    packages = {name: _version(name) for name in EXTRAS}
    return Findings(
        __version__, platform.python_version(), f"{platform.system()} {platform.machine()}", packages, probes
    )


def _version(package: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
