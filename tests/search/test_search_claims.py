"""Workers on one study: each candidate is measured once, and none is lost with a worker that is killed."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.search.worker import candidates, result
from vitedge.errors import VitedgeError
from vitedge.search.claims import Claims, open_study

pytest.importorskip("optuna")


def start(storage: str, count: int, log: Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    script = REPOSITORY / "tests" / "search" / "worker.py"
    return subprocess.Popen([sys.executable, str(script), storage, str(count), str(log)], env=environment)


def worked(log: Path) -> list[str]:
    return [line.split()[1] for line in log.read_text().splitlines()] if log.exists() else []


def run(storage: str, count: int, log: Path, workers: int, kills: int, limit_s: float = 300.0) -> None:
    """Workers until all is done; so many of them are killed amid their work, and others started in their place."""
    rng, deadline = random.Random(1), time.monotonic() + limit_s
    going, killed_at = [start(storage, count, log) for _ in range(workers)], 0
    try:
        while any(process.poll() is None for process in going):
            assert time.monotonic() < deadline, "the workers did not end"
            if kills and len(worked(log)) > killed_at + 2:
                victim = rng.choice([p for p in going if p.poll() is None])
                victim.send_signal(signal.SIGKILL)
                victim.wait()
                going.append(start(storage, count, log))
                kills, killed_at = kills - 1, len(worked(log))
            time.sleep(0.02)
        assert not kills, "the work was too short to kill anybody in it"
        assert all(process.returncode in (0, -signal.SIGKILL) for process in going)
    finally:
        for process in going:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()


def check(storage: str, count: int, log: Path, kills: int) -> None:
    measured = Claims(open_study(storage, "test", "p50-ms")).measured()
    assert [candidate for candidate, _ in measured] == sorted(candidates(count), key=lambda c: c.key)
    expected = {c.share: result(c)[0] for c in candidates(count)}
    assert all(found["cost"] == expected[candidate.share] for candidate, found in measured)
    # What was begun twice was begun by somebody who was killed.
    assert count <= len(worked(log)) <= count + kills


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_two_workers_three_kills(kind: str, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db" if kind == "sqlite" else f"journal:{tmp_path}/study.log"
    run(storage, 14, tmp_path / "log", workers=2, kills=3)
    check(storage, 14, tmp_path / "log", kills=3)


@pytest.fixture
def postgres() -> Iterator[str]:
    """A server of Debian's package on a socket in a folder of its own; its URL."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("Debian's package postgresql is not installed")
    folder = Path(tempfile.mkdtemp(prefix="vitedge-pg-"))
    # The server refuses to run as root; the package has made a user for it.
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if as_user:
        shutil.chown(folder, "postgres")

    def call(program: str, *arguments: str) -> None:
        command = [*as_user, str(found[-1].with_name(program)), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        call("initdb", "-D", f"{folder}/data", "-U", "vitedge", "-A", "trust", "--no-sync")
        options = f"-k {folder} -h '' -c fsync=off"
        call("pg_ctl", "-D", f"{folder}/data", "-w", "-l", f"{folder}/log", "-o", options, "start")
        try:
            yield f"postgresql://vitedge@/postgres?host={folder}"
        finally:
            call("pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_four_workers_on_postgres(postgres: str, tmp_path: Path) -> None:
    run(postgres, 24, tmp_path / "log", workers=4, kills=2)
    check(postgres, 24, tmp_path / "log", kills=2)


def test_a_silent_worker_of_another_machine_is_lost(tmp_path: Path) -> None:
    study = open_study(f"sqlite:///{tmp_path}/study.db", "test", "p50-ms")
    line = candidates(1)
    gone = Claims(study, "elsewhere/77/1")
    lost = gone.claim(line)
    here = Claims(study)
    assert lost and here.claim(line) is None and here.running()
    here.grace_s = 0.0  # as if a minute had gone by
    taken = here.claim(line)
    assert taken and taken.number > lost.number
    here.finish(taken, (1.0, 1.0), {"by": "here"})
    gone.finish(lost, (2.0, 0.5), {"by": "the lost one, which comes back"})
    assert [result for _, result in here.measured()] == [{"by": "here"}]
    assert here.claim(line) is None and not here.open(line)


def test_a_candidate_that_fails_is_given_up(tmp_path: Path) -> None:
    claims = Claims(open_study(f"journal:{tmp_path}/study.log", "test", "p50-ms"))
    line = candidates(1)
    for _ in range(2):
        claim = claims.claim(line)
        assert claim is not None
        claims.release(claim, "the compiler crashed")
    assert claims.claim(line) is None and not claims.open(line)


def test_candidates_of_a_pruning_that_somebody_makes_come_later(tmp_path: Path) -> None:
    study = open_study(f"sqlite:///{tmp_path}/study.db", "test", "p50-ms")
    first, second, third = candidates(4)[1:]
    same = type(first)(first.share, "macs", "auto", False, "fp32")
    one, two = Claims(study), Claims(study)
    line = [first, same, second, third]
    claimed = [worker.claim(line) for worker in (one, two)]
    assert [claim and claim.candidate for claim in claimed] == [first, second]


def test_a_storage_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(VitedgeError, match="can't be opened"):
        open_study(f"sqlite:///{tmp_path}/no/such/folder/study.db", "test", "p50-ms")
