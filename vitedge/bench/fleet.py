"""A run measured on several boards at once: one pack for all, each board's result into the run's `bench/`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vitedge.bench import from_bundle
from vitedge.bench.jobs import Settings
from vitedge.bench.measure import BenchRequest
from vitedge.bench.pack import write_pack
from vitedge.bench.remote import bench_hosts
from vitedge.bench.result import BenchResult, load
from vitedge.bench.ssh import LinkFailed, Ssh
from vitedge.bundle import Bundle
from vitedge.errors import VitedgeError
from vitedge.host import facts as host
from vitedge.reporter import Reporter


def bench_fleet(
    bundle: Bundle,
    pack: Path | None,
    names: Sequence[str],
    request: BenchRequest,
    settings: Settings,
    reporter: Reporter,
    *,
    ssh: Sequence[str] = ("ssh",),
    python: str = "python3",
) -> dict[str, BenchResult]:
    """Host as it was named -> its result; those that succeeded are written to `bench/<board>.json`.

    Raises:
        VitedgeError: nothing to pack, or a name that is no host.
    """
    try:
        hosts = [Ssh(name, ssh) for name in names]
    except LinkFailed as failed:
        raise VitedgeError(f"{failed}.", "", "Write it as user@board, as for ssh.") from None
    with bundle.lock():
        artifacts = [job.artifact for job in from_bundle.find_artifacts(bundle, request.only)]
        ready = pack or _pack(bundle, request, settings, reporter)
        keep = bundle.root / "bench" / "work"
        found = bench_hosts(hosts, ready, artifacts, to_arguments(request, settings), python, keep, reporter)
        out = {}
        for name, result in found.items():
            called = hashlib.sha256(name.encode()).hexdigest()[:8]
            known = replace(result, host=replace(result.host, called=called), gate=request.gate)
            out[name] = known = replace(known, run=str(bundle.root), command=request.command)
            if known.ok:
                known.write(_free_name(bundle.root / "bench", known))
    return out


def to_arguments(request: BenchRequest, settings: Settings) -> list[str]:
    """The settings as flags of `vitedge bench` on the board."""
    out = ["--scenario", ",".join(settings.scenarios), "--batch", str(settings.batch)]
    out += ["--contexts", str(settings.contexts), "--seconds", f"{settings.seconds:g}"]
    out += ["--launches", str(settings.launches)]
    out += ["--sustained-seconds", f"{settings.sustained_s:g}", "--timeout", f"{settings.timeout_s:g}"]
    out += ["--row-limit", f"{settings.row_limit_s:g}"]
    out += ["--threads", str(settings.threads)] if settings.threads else []
    out += ["--cores", ",".join(map(str, settings.cores))] if settings.cores else []
    out += ["--memory-limit-mib", str(settings.memory_limit_mib)] if settings.memory_limit_mib else []
    out += [] if settings.accuracy else ["--no-accuracy"]
    out += ["--fresh"] if request.fresh else []
    out += ["--only", ",".join(request.only)] if request.only else []
    return out + (["--host-name", request.host_name] if request.host_name else [])


def _pack(bundle: Bundle, request: BenchRequest, settings: Settings, reporter: Reporter) -> Path:
    """The pack of this data and these artifacts, made where an earlier run has not."""
    source = from_bundle.find_source(bundle, request.data, request.limit, request.seed)
    built = {path: bundle.manifest.artifacts[path].sha256 for path in bundle.files("build/")}
    recipe = json.dumps([source.facts().sha256, len(source), built, request.only, host.versions()["vitedge"]])
    path = bundle.root / "bench" / "packs" / f"{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.tar"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob("*.tar"):
            old.unlink()
        write_pack(
            bundle,
            path,
            data=request.data,
            limit=request.limit,
            seed=request.seed,
            only=request.only,
            settings=settings,
            reporter=reporter,
        )
    return path


def _free_name(folder: Path, result: BenchResult) -> Path:
    """`<board>.json`; two boards of a kind are told apart by a digest of how they were called."""
    path = folder / f"{host.slug(result.host)}.json"
    if path.is_file():
        try:
            other = load(path).host.called
        except VitedgeError:
            other = None
        if other != result.host.called:
            return path.with_name(f"{path.stem}-{result.host.called}.json")
    return path
