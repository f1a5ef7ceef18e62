"""`vitedge bench --host user@board`: pack, copy, run there, bring the result back."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shlex
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import vitedge
from vitedge import documents
from vitedge.bench.artifact import Artifact
from vitedge.bench.result import BenchResult, new_row, parse
from vitedge.bench.ssh import LinkFailed, Ssh
from vitedge.errors import VitedgeError
from vitedge.reporter import Reporter

HOME = "~/.vitedge"
_LEAST_PYTHON = (3, 10)
_RECORDS = re.compile(r"work/[0-9a-f]{12}/[A-Za-z0-9_.+-]+\.(rec|json)")

# Runs under any Python 3: it must be able to tell that the Python is too old.
_PROBE = """
import json, sys
missing = []
for name in ("numpy", "PIL", "pydantic", "typer", "rich", "safetensors", "tomli_w", "onnxruntime"):
    try:
        __import__(name)
    except Exception:
        missing.append(name)
try:
    import vitedge
    version = vitedge.__version__
except Exception:
    version = None
print(json.dumps({"python": list(sys.version_info[:3]), "missing": missing, "vitedge": version}))
"""
_PACKAGES = {"PIL": "pillow", "tomli_w": "tomli-w"}


def source_archive() -> bytes:
    """This very vitedge as a tar: a board then runs the same code, whatever it has installed."""
    root = Path(vitedge.__file__).resolve().parent
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as tar:
        for path in sorted(root.rglob("*")):
            if path.is_file() and path.suffix in (".py", ".json", ".html", ".css", ".js", ".typed", ".txt"):
                member = tarfile.TarInfo(f"vitedge/{path.relative_to(root).as_posix()}")
                content = path.read_bytes()
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def check_board(ssh: Ssh, python: str, reporter: Reporter) -> None:
    """Raises VitedgeError where the board lacks Python 3.10 or a package of the core, with what to do."""
    done = ssh.run(f"{_command(python)} -c {shlex.quote(_PROBE)}")
    try:
        found = json.loads(done.stdout.decode().strip().splitlines()[-1])
    except (ValueError, IndexError):
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise VitedgeError(
            f"{ssh.host} has no Python '{python}'.",
            said[-1] if said else "",
            "Install Python 3.10 or newer there, or name another with --remote-python.",
            exit_code=1,
        ) from None
    version = ".".join(map(str, found["python"]))
    if tuple(found["python"][:2]) < _LEAST_PYTHON:
        raise VitedgeError(
            f"{ssh.host} has Python {version}, and vitedge needs 3.10.",
            "",
            "Install a newer one there and name it with --remote-python, such as ~/env/bin/python.",
            exit_code=1,
        )
    if found["missing"]:
        packages = " ".join(_PACKAGES.get(name, name) for name in found["missing"])
        raise VitedgeError(
            f"The Python {version} of {ssh.host} lacks: {packages}.",
            "vitedge's core needs them; vitedge itself is copied by this command.",
            f"There: python3 -m venv ~/env && ~/env/bin/pip install {packages}; then: --remote-python ~/env/bin/python",
            exit_code=1,
        )
    if found["vitedge"] not in (None, vitedge.__version__):
        reporter.info(f"{ssh.host} has vitedge {found['vitedge']}; this one's {vitedge.__version__} is copied and used")


def bench_host(
    ssh: Ssh, pack: Path, arguments: Sequence[str], python: str, keep: Path | None, reporter: Reporter
) -> BenchResult:
    """The result of a pack on that host; records go to `keep` (the run's `bench/work`).

    Raises:
        VitedgeError: the host can't be reached, lacks what is needed, or the run there failed. What the
        board has
            measured stays there, and the next run goes on from it.
    """
    try:
        check_board(ssh, python, reporter)
        archive = source_archive()
        code = f"{HOME}/code-{hashlib.sha256(archive).hexdigest()[:16]}"
        have = f"test -f {code}/vitedge/__init__.py"
        unpack = f"mkdir -p {code}.part && tar -xzf - -C {code}.part && rm -rf {code} && mv {code}.part {code}"
        if ssh.run(have).returncode != 0 and ssh.run(unpack, feed=archive).returncode != 0:
            raise VitedgeError(f"vitedge could not be copied to {ssh.host}.", "", "Is there room?", exit_code=1)
        with pack.open("rb") as opened:
            key = hashlib.sha256(opened.read(1 << 20)).hexdigest()[:16]  # the index, with all checksums, comes first
        there = f"{HOME}/packs/{key}.tar"
        with reporter.progress(f"copying to {ssh.host}", pack.stat().st_size) as advance:
            ssh.send(pack, there, advance)
        command = ["-m", "vitedge", "bench", f"packs/{key}.tar", "--json", f"results/{key}.json", *arguments]
        script = (
            f"mkdir -p {HOME}/results && cd {HOME} && rm -f results/{key}.json && "
            f"PYTHONPATH={code} {_command(python)} {shlex.join(command)}"
        )
        last: list[str] = []

        def line(text: str) -> None:
            if text:
                last.append(text)
                reporter.info(f"[{ssh.host}] {text}")

        status = ssh.stream(script, line)
        fetched = ssh.run(f"cat {HOME}/results/{key}.json").stdout
        if not fetched:
            why = " ".join(last[-3:])
            raise VitedgeError(f"The run on {ssh.host} failed.", why, f"Its exit status is {status}.", exit_code=1)
        result = parse(documents.parse_json(fetched, f"the result of {ssh.host}", exit_code=1), ssh.host)
        if keep is not None:
            _take_records(ssh.run(f"cd {HOME}/packs/{key}.tar.unpacked/bench && tar -cf - work").stdout, keep)
        return result
    except LinkFailed as failed:
        raise VitedgeError(
            f"{ssh.host}: {failed}.",
            "ssh could not connect, or the link was cut.",
            "What was measured is kept on the board: run the same command again, and it goes on from there.",
            exit_code=1,
        ) from None


def bench_hosts(
    hosts: Sequence[Ssh],
    pack: Path,
    artifacts: Sequence[Artifact],
    arguments: Sequence[str],
    python: str,
    keep: Path | None,
    reporter: Reporter,
) -> dict[str, BenchResult]:
    """Host -> its result, all hosts at once. A host that failed has rows with the reason; the others go
    on."""

    def one(ssh: Ssh) -> BenchResult:
        try:
            return bench_host(ssh, pack, arguments, python, keep, reporter)
        except VitedgeError as error:
            return _failed(artifacts, str(error))

    with ThreadPoolExecutor(max(1, len(hosts))) as pool:
        return dict(zip([ssh.host for ssh in hosts], pool.map(one, hosts), strict=True))


def _failed(artifacts: Sequence[Artifact], reason: str) -> BenchResult:
    return BenchResult(tuple(new_row(artifact, reason=reason) for artifact in artifacts))


def _command(python: str) -> str:
    """The interpreter for the remote shell; a leading ~/ is the home folder there."""
    return "~/" + shlex.quote(python[2:]) if python.startswith("~/") else shlex.quote(python)


def _take_records(archive: bytes, keep: Path) -> None:
    """Writes the records out of a board's tar: plain files of the known names alone."""
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            for member in tar:
                opened = tar.extractfile(member) if member.isreg() and _RECORDS.fullmatch(member.name) else None
                if opened is not None:
                    to = keep / Path(member.name).relative_to("work")
                    to.parent.mkdir(parents=True, exist_ok=True)
                    to.write_bytes(opened.read())
    except tarfile.TarError:
        return  # the figures are there; only the report's images of changes are not
