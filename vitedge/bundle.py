"""The run folder: what each step made, from what, with which options; checked by hash, continued after a kill.

A step writes into a temporary folder. Its files are renamed into place when it has succeeded, and the manifest is
rewritten last: a run that was killed at any point leaves the old manifest, whose hashes then show what is to be
made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitedge import __version__
from vitedge.errors import VitedgeError
from vitedge.files import move_into_place, write_error, write_json

SCHEMA = 1
DEFAULT_RUN = "vitedge-run"


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def code_version(*packages: str) -> str:
    """Digest of the sources of these modules and packages: a step's results are as old as its code."""
    digest = hashlib.sha256()
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ValueError(f"no module {package}")
        origin = Path(spec.origin)
        for file in sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]:
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class StepRecord:
    """What a step did: its facts, its files, and whether it was taken from an earlier run."""

    name: str
    facts: dict[str, Any]
    outputs: list[str]
    cached: bool


class Bundle:
    """One run folder. Paths inside are relative to its root, with forward slashes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest: dict[str, Any] = {"schema": SCHEMA, "vitedge": __version__, "steps": {}, "artifacts": {}}

    @classmethod
    def create(cls, root: Path) -> Bundle:
        """The bundle of that folder, made where there is none. Raises VitedgeError where it can't be."""
        if (root / "manifest.json").exists():
            return cls.open(root)
        if root.exists() and (not root.is_dir() or any(p.name != ".lock" for p in root.iterdir())):
            raise VitedgeError(
                f"'{root}' exists and is not a vitedge run folder.",
                "It has no manifest.json; nothing of yours is overwritten.",
                "Choose another folder with --run.",
            )
        bundle = cls(root)
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(error, root) or error from error
        bundle._save()
        return bundle

    @classmethod
    def open(cls, root: Path) -> Bundle:
        """The bundle of an existing run folder. Raises VitedgeError where there is none or it is damaged."""
        path = root / "manifest.json"
        if not path.is_file():
            raise VitedgeError(
                f"There is no run in '{root}'.",
                "It has no manifest.json.",
                "Make one with `vitedge compress --run DIR`, or name another with --run.",
            )
        bundle = cls(root)
        try:
            bundle.manifest = json.loads(path.read_text(encoding="utf-8"))
            schema = bundle.manifest["schema"]
        except (ValueError, KeyError, TypeError) as error:
            raise VitedgeError(
                f"'{path}' is damaged.", str(error), "Start again in another folder: --run DIR.", exit_code=1
            ) from error
        if schema != SCHEMA:
            raise VitedgeError(
                f"'{path}' was written by another version of vitedge.",
                f"Its schema is {schema}; this version reads {SCHEMA}.",
                "Use that version, or start again in another folder: --run DIR.",
            )
        return bundle

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the bundle against a second process; raises VitedgeError at once where one has it."""
        path = self.root / ".lock"
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise write_error(error, path) or error from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.read(handle, 32).decode(errors="replace").strip()
                raise VitedgeError(
                    f"Another vitedge process is working on '{self.root}'.",
                    f"Its process number is {holder}." if holder else "",
                    "Wait until it is done, or name another folder with --run.",
                    exit_code=1,
                ) from error
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
            # What the process before us may have changed.
            self.manifest = Bundle.open(self.root).manifest
            yield
        finally:
            os.close(handle)  # releases the lock

    def remove_if_empty(self) -> None:
        """Removes the run folder where no step has succeeded yet: a wrong call leaves nothing behind."""
        if not self.manifest["steps"]:
            for name in (".lock", "manifest.json"):
                (self.root / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.root.rmdir()

    def path(self, relative: str) -> Path:
        """Where that file of the bundle is."""
        return self.root / relative

    def has(self, relative: str) -> bool:
        """Whether the manifest knows that file."""
        return relative in self.manifest["artifacts"]

    def verified(self, relative: str) -> Path:
        """The path of an artifact whose bytes are those that were written; raises VitedgeError else."""
        entry = self.manifest["artifacts"].get(relative)
        if entry is None:
            raise VitedgeError(
                f"The run '{self.root}' has no '{relative}'.", "", "Make it with `vitedge compress` first."
            )
        if not self._intact(relative):
            state = "was changed after vitedge wrote it" if self.path(relative).is_file() else "is gone"
            raise VitedgeError(
                f"'{self.path(relative)}' {state}.",
                "Its SHA-256 is not the one in manifest.json, so nothing that is known of it holds any more.",
                f"Run `vitedge {_command(entry['step'])}` again to make it anew.",
                exit_code=1,
            )
        return self.path(relative)

    def facts(self, step: str) -> dict[str, Any]:
        """What that step reported; empty where it was not run."""
        return self.manifest["steps"].get(step, {}).get("facts", {})

    def run_step(
        self,
        name: str,
        work: Callable[..., dict[str, Any]],
        *,
        options: Mapping[str, Any],
        inputs: list[str],
        code: str,
        external: Mapping[str, str] | None = None,
        tools: Mapping[str, str] | None = None,
        resumes: bool = False,
    ) -> StepRecord:
        """Runs `work(folder)` unless an earlier run made the same, and takes over the files that it wrote.

        work: writes files below `folder` at the paths that they get in the bundle, and returns JSON-able facts.
        inputs: files of the bundle that it reads; they are verified.
        external: digests of what it reads from outside.
        code, tools: versions of our code (`code_version`) and of the libraries that matter.
        resumes: it is called as `work(folder, kept)`, where `kept` is a folder (not made yet) for the state of
            unfinished work. It outlives a kill, the same recipe finds it again, and it goes when the step is done.
        """
        parents = {path: self._hash(path) for path in inputs}
        recipe = {"name": name, "options": dict(options), "inputs": parents, "external": dict(external or {})}
        recipe |= {"code": code, "tools": dict(tools or {})}
        key = hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()
        old = self.manifest["steps"].get(name)
        if old and old["key"] == key and all(self._intact(path) for path in old["outputs"]):
            return StepRecord(name, old["facts"], old["outputs"], cached=True)
        for path in inputs:
            self.verified(path)
        folder = self.root / ".tmp" / name.replace("/", "-")
        shutil.rmtree(folder, ignore_errors=True)
        started = time.time()
        try:
            folder.mkdir(parents=True)
            facts = work(folder, self._unfinished(name) / key[:16]) if resumes else work(folder)
            outputs = self._take_over(folder)
        except OSError as error:
            raise write_error(error, folder) or error from error
        finally:
            shutil.rmtree(self.root / ".tmp", ignore_errors=True)
        record = recipe | {"key": key, "outputs": outputs, "facts": facts, "seconds": round(time.time() - started, 1)}
        del record["name"]
        self._forget([path for path in (old or {}).get("outputs", []) if path not in outputs])
        self.manifest["steps"][name] = record
        for path in outputs:
            file = self.path(path)
            self.manifest["artifacts"][path] = {
                "sha256": sha256_file(file),
                "bytes": file.stat().st_size,
                "step": name,
                "parents": parents,
            }
        self._save()
        shutil.rmtree(self._unfinished(name), ignore_errors=True)
        return StepRecord(name, facts, outputs, cached=False)

    def drop_step(self, name: str) -> None:
        """Removes a step and its files: it is no part of what is asked for now."""
        shutil.rmtree(self._unfinished(name), ignore_errors=True)
        old = self.manifest["steps"].pop(name, None)
        if old is not None:
            self._forget(old["outputs"])
            self._save()

    def _unfinished(self, step: str) -> Path:
        return self.root / ".unfinished" / step.replace("/", "-")

    def _hash(self, relative: str) -> str:
        entry = self.manifest["artifacts"].get(relative)
        if entry is None:
            raise VitedgeError(f"The run '{self.root}' has no '{relative}'.", "", "Run `vitedge compress` first.")
        return entry["sha256"]

    def _intact(self, relative: str) -> bool:
        entry, path = self.manifest["artifacts"].get(relative), self.path(relative)
        return bool(
            entry and path.is_file() and path.stat().st_size == entry["bytes"] and sha256_file(path) == entry["sha256"]
        )

    def _take_over(self, folder: Path) -> list[str]:
        outputs = []
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            relative = file.relative_to(folder).as_posix()
            target = self.path(relative)
            move_into_place(file, target)
            outputs.append(relative)
        return outputs

    def _forget(self, paths: list[str]) -> None:
        for path in paths:
            self.manifest["artifacts"].pop(path, None)
            self.path(path).unlink(missing_ok=True)

    def _save(self) -> None:
        write_json(self.root / "manifest.json", self.manifest)


def _command(step: str) -> str:
    return "build" if step.startswith("build") else "compress"
