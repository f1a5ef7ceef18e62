from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from bench_fakes import FakeRunner

from vitedge.bench.process import Artifact, ArtifactFailed, ArtifactProcess

HERE = Path(__file__).parent


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Starts a row on a fake target that does what the keywords say."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    rows = []

    def start(timeout_s=60.0, **metadata):
        artifact = Artifact("fake-fp32", "fake", "fp32", tmp_path / "x", metadata=metadata, module="bench_fakes")
        rows.append(ArtifactProcess(artifact, tmp_path / "row.log", timeout_s=timeout_s))
        return rows[-1]

    yield start
    for row in rows:
        row.kill()


PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)


def test_a_row_opens_infers_and_times(fake):
    row = fake(batch=2, ms=1)
    opened = row.open()
    assert opened["device"] == "cpu" and opened["batch"] == 2 and opened["load_ms"] > 0
    expected = FakeRunner({}, None).infer(PIXELS)
    assert np.array_equal(row.infer(PIXELS), expected)  # five images through a fixed batch of two
    assert row.load(PIXELS) == {"batch": 2, "inputs": 2}
    cold = row.ask("cold")
    assert cold["first_ms"] >= 1 and cold["peak_rss_mib"] > 5
    ns = row.ask("time", calls=7)["ns"]
    assert len(ns) == 7 and min(ns) >= 1_000_000
    assert row.ask("throughput", seconds=0.1, contexts=2)["images"] > 0
    row.close()
    assert row.process.returncode is not None and not row.exchange.exists()


def test_folders_of_killed_harnesses_are_removed(fake):
    own = fake().exchange
    left = own.with_name("vitedge-row-99999999-abc")  # above the largest process number
    left.mkdir()
    fake()
    assert own.exists() and not left.exists()


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ({"do": "crash"}, "killed by SIGSEGV; its last words: driver: fatal error 42"),
        ({"do": "raise"}, "RuntimeError: the compiler's own words"),
        ({"do": "exit"}, "ended during 'infer' with exit status 3"),
        ({"do": "memory"}, "out of memory"),
    ],
)
def test_what_goes_wrong_is_told_in_words(fake, behaviour, words):
    row = fake(**behaviour)
    row.open(memory_limit_mib=1500)
    with pytest.raises(ArtifactFailed) as failure:
        row.infer(PIXELS)
    assert words in failure.value.reason


def test_an_artifact_that_does_not_open(fake):
    with pytest.raises(ArtifactFailed, match="no such device"):
        fake(do="refuse").open()


def test_a_hang_is_stopped_after_its_time_limit(fake):
    row = fake(do="hang")
    row.open()
    start = time.monotonic()
    with pytest.raises(ArtifactFailed, match="hung: no answer to 'time' within 1 s"):
        row.load(PIXELS)
        row.ask("time", calls=1, timeout_s=1)
    assert time.monotonic() - start < 30
    assert row.process.poll() is not None


def test_a_row_killed_from_outside(fake):
    row = fake()
    row.open()
    row.process.kill()
    with pytest.raises(ArtifactFailed, match="SIGKILL, most likely because the machine ran out of memory"):
        row.infer(PIXELS)


def test_a_row_ends_with_the_process_that_started_it(tmp_path):
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from vitedge.bench.process import Artifact, ArtifactProcess\n"
        "row = ArtifactProcess(Artifact('a', 'fake', 'fp32', Path('x'), metadata={'do': 'hang'}, module='bench_fakes'),"
        " Path(sys.argv[2]))\n"
        "row.open(); print(row.process.pid, flush=True); time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent.parent)])}
    command = [sys.executable, "-c", code, str(HERE), str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as parent:
        pid = int(parent.stdout.readline())
        parent.kill()
    for _ in range(600):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.05)
    pytest.fail("the row outlived its parent")
