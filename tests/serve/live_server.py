"""A server over a small run folder, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from bench_run import ROOT, make_run
from bench_small import write_images

pytest.importorskip("fastapi")


@pytest.fixture(scope="session")
def served_run(tmp_path_factory) -> Path:
    """A run folder with an FP32 and an INT8 artifact; `images/` beside it."""
    folder = tmp_path_factory.mktemp("serve")
    write_images(folder / "images")
    return make_run(folder)


@contextmanager
def serving(run: Path, *flags: object):
    """(URL, process) of `vitedge serve` on a free port."""
    command = [sys.executable, "-m", "vitedge", "serve", "--run", run, "--port", 0, *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    with tempfile.TemporaryFile("w+") as log:  # not a pipe, which fills where nobody reads it
        process = subprocess.Popen(list(map(str, command)), stderr=log, text=True, env=environment)
        try:
            found = None
            while not found and process.poll() is None:
                time.sleep(0.1)
                log.seek(0)
                found = re.search(r"http://[0-9.]+:\d+/ ", log.read())
            log.seek(0)
            assert found, log.read()
            yield found[0].strip(), process
            log.seek(0)
            assert "Traceback" not in log.read()
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def server(served_run):
    """The URL of a server that all tests share."""
    import httpx

    with serving(served_run) as (url, _):
        wait_until_ready(url, httpx)
        yield url


def wait_until_ready(url: str, httpx) -> None:
    """Until the server's default artifact answers."""
    for _ in range(600):
        try:
            if httpx.get(url + "healthz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("the server did not become ready")
