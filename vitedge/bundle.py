"""The run folder: what each step made, from what, with which options; checked by hash, continued after a kill.

A step writes into a temporary folder. Its files are renamed into place when it has succeeded, and the manifest is
rewritten last: a run that was killed at any point leaves the old manifest, whose hashes then show what is to be
made again. A run folder is data that somebody may have handed over: each path in it stays inside it, links included,
and the manifest carries a digest of itself.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitedge import documents
from vitedge.closure import code_version, library_versions
from vitedge.documents import Json, printable
from vitedge.errors import VitedgeError
from vitedge.files import clean, locked, move_into_place, scratch_dir, write_error, write_json
from vitedge.manifest import MANIFEST, SCHEMA, ArtifactEntry, Facts, Manifest, StepEntry, digest_of, sha256_file

DEFAULT_RUN = "vitedge-run"
# A refusal removes a run folder that it has made itself, where no more work than this is in it.
_CHEAP_S = 60.0


@dataclass(frozen=True)
class StepRecord:
    """What a step did: its facts, its files, and whether it was taken from an earlier run."""

    name: str
    facts: Facts
    outputs: list[str]
    cached: bool


class Bundle:
    """One run folder. Paths inside are relative to its root, with forward slashes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest = Manifest()
        self._made = False  # whether this process has made the folder

    @classmethod
    def create(cls, root: Path) -> Bundle:
        """The bundle of that folder, made where there is none. Raises VitedgeError where it can't be."""
        if (root / MANIFEST).exists():
            return cls.open(root)
        clean(root)
        if root.exists() and (not root.is_dir() or any(p.name != ".lock" for p in root.iterdir())):
            raise VitedgeError(
                f"'{printable(root)}' exists and is not a vitedge run folder.",
                f"It has no {MANIFEST}; nothing of yours is overwritten.",
                "Choose another folder with --run.",
            )
        bundle = cls(root)
        bundle._made = True
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(error, root) or error from error
        bundle._save()
        return bundle

    @classmethod
    def open(cls, root: Path) -> Bundle:
        """The bundle of an existing run folder. Raises VitedgeError where there is none or it is damaged."""
        bundle = cls(root)
        bundle._read()
        return bundle

    def _read(self) -> None:
        path = self.root / MANIFEST
        if not path.is_file():
            raise VitedgeError(
                f"There is no run in '{printable(self.root)}'.",
                f"It has no {MANIFEST}.",
                "Make one with `vitedge compress --run DIR`, or name another with --run.",
            )
        todo = "Start again in another folder: --run DIR."
        try:
            values = documents.read_json(path)
            schema = values.get("schema") if isinstance(values, dict) else None
            if type(schema) is int and schema != SCHEMA:
                raise VitedgeError(
                    f"'{printable(path)}' was written by another version of vitedge.",
                    f"Its schema is {schema}; this version reads {SCHEMA}.",
                    f"Use that version, or {todo[0].lower()}{todo[1:]}",
                )
            self.manifest = documents.validate(values, Manifest, path)
            if self.manifest.digest and self.manifest.digest != self.manifest.to_json()["digest"]:
                raise VitedgeError("", "It was changed after vitedge wrote it.")
        except VitedgeError as error:
            if "another version" in error.what:
                raise
            raise VitedgeError(f"'{printable(path)}' is damaged.", error.why, todo, exit_code=1) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the bundle against a second process; raises VitedgeError at once where one has it.

        What killed processes left is removed. Where the block is refused, or fails before a step has succeeded, a
        folder that `create` has made goes again: a wrong call leaves nothing behind.
        """
        with locked(self.root / ".lock", "working on"):
            clean(self.root, below=True)
            self._read()  # what the process before us may have changed
            try:
                yield
            except BaseException as error:
                refused = isinstance(error, VitedgeError) and error.exit_code == 2
                spent = sum(step.seconds for step in self.manifest.steps.values())
                if not self.manifest.steps or (self._made and refused and spent < _CHEAP_S):
                    self._remove()
                raise

    def _remove(self) -> None:
        """Removes the run: what the manifest knows, and what each run has; never what somebody else wrote in it."""
        with contextlib.suppress(OSError, VitedgeError):
            for name in list(self.manifest.steps):
                self._forget(self.manifest.steps.pop(name).outputs)
            shutil.rmtree(self.path(".unfinished"), ignore_errors=True)
            for name in (".lock", MANIFEST, "vitedge.toml"):
                self.path(name).unlink(missing_ok=True)
            self.root.rmdir()

    def path(self, relative: str) -> Path:
        """Where that file of the bundle is. Raises VitedgeError where it would be outside of it, links included."""
        return documents.inside(self.root, relative, name=self.root / MANIFEST)

    def has(self, relative: str) -> bool:
        """Whether the manifest knows that file."""
        return relative in self.manifest.artifacts

    def verified(self, relative: str) -> Path:
        """The path of an artifact whose bytes are those that were written; raises VitedgeError else."""
        entry = self.manifest.artifacts.get(relative)
        if entry is None:
            raise VitedgeError(
                f"The run '{printable(self.root)}' has no '{printable(relative)}'.",
                "",
                "Make it with `vitedge compress` first.",
            )
        if not self._intact(relative):
            state = "was changed after vitedge wrote it" if self.path(relative).is_file() else "is gone"
            raise VitedgeError(
                f"'{printable(self.path(relative))}' {state}.",
                f"Its SHA-256 is not the one in {MANIFEST}, so nothing that is known of it holds any more.",
                f"Run `vitedge {_command(entry.step)}` again to make it anew.",
                exit_code=1,
            )
        return self.path(relative)

    def read(self, relative: str) -> bytes:
        """The bytes of an artifact, verified. Raises VitedgeError."""
        return documents.read_bytes(self.verified(relative))

    def text(self, relative: str) -> str:
        """The text of an artifact, verified. Raises VitedgeError, also where it is no UTF-8."""
        return documents.read_text(self.verified(relative), exit_code=1)

    def json(self, relative: str) -> Json:
        """The values of an artifact that is a JSON object, verified and bounded. Raises VitedgeError."""
        return documents.parse(self.read(relative), Json, relative, exit_code=1)

    def facts(self, step: str) -> Facts:
        """What that step reported; empty where it was not run."""
        entry = self.manifest.steps.get(step)
        return dict(entry.facts) if entry else {}

    def files(self, prefix: str) -> list[str]:
        """The artifacts whose path begins with `prefix`, sorted."""
        return sorted(path for path in self.manifest.artifacts if path.startswith(prefix))

    def stale(self, *paths: str) -> str:
        """Why one of these artifacts no longer belongs to this run, in a sentence; "" where all are current.

        An artifact is current where each file that it was made from is still what it was then, back to the source.
        """
        waiting, seen = list(paths), set(paths)
        while waiting:
            path = waiting.pop()
            entry = self.manifest.artifacts.get(path)
            for parent, digest in entry.parents.items() if entry else ():
                now = self.manifest.artifacts.get(parent)
                if now is None or now.sha256 != digest:
                    state = "is no longer there" if now is None else "is another one now"
                    return f"'{printable(path)}' was made from '{printable(parent)}', which {state}."
                if parent not in seen:
                    seen.add(parent)
                    waiting.append(parent)
        return ""

    def current(self, *paths: str) -> None:
        """Raises VitedgeError, with the command that makes it anew, where one of these artifacts is stale."""
        if reason := self.stale(*paths):
            entry = self.manifest.artifacts[paths[0]]
            raise VitedgeError(
                f"'{printable(paths[0])}' belongs to an earlier state of the run '{printable(self.root)}'.",
                reason,
                f"Make it anew with `vitedge {_command(entry.step)}`.",
                exit_code=1,
            )

    def record(
        self, step: str, outputs: Sequence[str], inputs: Sequence[str] = (), facts: Mapping[str, Any] | None = None
    ) -> None:
        """Takes files that were written in place (bench results, tables of analyses) into the manifest.

        From now on they are verified, and can be stale. Call it within `lock`; a second call for `step` replaces the
        first.
        """
        parents = {path: self._hash(path) for path in inputs}
        key = digest_of([step, parents])
        entry = StepEntry(key=key, inputs=parents, outputs=list(outputs), facts=dict(facts or {}))
        self._keep(step, entry, parents)

    def run_step(
        self,
        name: str,
        work: Callable[..., Facts],
        *,
        options: Mapping[str, Any],
        inputs: list[str],
        code: str = "",
        modules: Sequence[str] = (),
        external: Mapping[str, str] | None = None,
        tools: Mapping[str, str] | None = None,
        resumes: bool = False,
    ) -> StepRecord:
        """Runs `work(folder)` unless an earlier run made the same, and takes over the files that it wrote.

        work: writes files below `folder` at the paths that they get in the bundle, and returns JSON-able facts.
        inputs: files of the bundle that it reads; they are verified.
        external: digests of what it reads from outside.
        modules: its own modules; all that they can import inside vitedge, and the versions of the libraries that they
            use, are part of its key (see closure.py). code: a version beside that.
        tools: versions of compilers.
        resumes: it is called as `work(folder, kept)`, where `kept` is a folder (not made yet) for the state of
            unfinished work. It outlives a kill, the same recipe finds it again, and it goes when the step is done.
        """
        parents = {path: self._hash(path) for path in inputs}
        if modules:
            code += code_version(*modules)
            tools = library_versions(*modules) | dict(tools or {})
        recipe: Facts = {"options": dict(options), "inputs": parents, "external": dict(external or {})}
        recipe |= {"code": code, "tools": dict(tools or {})}
        key = digest_of({"name": name} | recipe)
        old = self.manifest.steps.get(name)
        if old and old.key == key and all(self._intact(path) for path in old.outputs):
            return StepRecord(name, dict(old.facts), list(old.outputs), cached=True)
        for path in inputs:
            self.verified(path)
        started = time.time()
        with scratch_dir(self.root, "step") as folder:
            facts = work(folder, self._unfinished(name) / key[:16]) if resumes else work(folder)
            outputs = self._take_over(folder)
        # Through JSON and back: what is read from a cached step is what is returned now.
        plain = json.loads(documents.dump({"recipe": recipe, "facts": facts}, default=str))
        record = documents.validate(
            plain["recipe"]
            | {"key": key, "outputs": outputs, "facts": plain["facts"], "seconds": round(time.time() - started, 1)},
            StepEntry,
            name,
        )
        self._keep(name, record, parents)
        shutil.rmtree(self._unfinished(name), ignore_errors=True)
        return StepRecord(name, facts, outputs, cached=False)

    def drop_step(self, name: str) -> None:
        """Removes a step and its files: it is no part of what is asked for now."""
        shutil.rmtree(self._unfinished(name), ignore_errors=True)
        old = self.manifest.steps.pop(name, None)
        if old is not None:
            self._forget(old.outputs)
            self._save()

    def _keep(self, name: str, record: StepEntry, parents: dict[str, str]) -> None:
        old = self.manifest.steps.get(name)
        self._forget([path for path in (old.outputs if old else []) if path not in record.outputs])
        self.manifest.steps[name] = record
        for path in record.outputs:
            file = self.path(path)
            self.manifest.artifacts[path] = ArtifactEntry(
                sha256=sha256_file(file), bytes=file.stat().st_size, step=name, parents=parents
            )
        self._save()

    def _unfinished(self, step: str) -> Path:
        return self.path(f".unfinished/{step.replace('/', '-')}")

    def _hash(self, relative: str) -> str:
        entry = self.manifest.artifacts.get(relative)
        if entry is None:
            raise VitedgeError(
                f"The run '{printable(self.root)}' has no '{printable(relative)}'.", "", "Run `vitedge compress` first."
            )
        return entry.sha256

    def _intact(self, relative: str) -> bool:
        entry, path = self.manifest.artifacts.get(relative), self.path(relative)
        return bool(
            entry and path.is_file() and path.stat().st_size == entry.bytes and sha256_file(path) == entry.sha256
        )

    def _take_over(self, folder: Path) -> list[str]:
        outputs = []
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            relative = file.relative_to(folder).as_posix()
            move_into_place(file, self.path(relative))
            outputs.append(relative)
        return outputs

    def _forget(self, paths: Sequence[str]) -> None:
        for path in paths:
            self.manifest.artifacts.pop(path, None)
            file = self.path(path)
            file.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # folders that are empty now
                for parent in list(file.parents)[: len(Path(path).parts) - 1]:
                    parent.rmdir()

    def _save(self) -> None:
        write_json(self.root / MANIFEST, self.manifest.to_json())


def _command(step: str) -> str:
    return step.partition("/")[0] if step.startswith(("build", "bench")) else "compress"
