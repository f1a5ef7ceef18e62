"""A real sshd on loopback plays the board: its own home, keys, port, and a Python without torch or onnx."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from bench_run import QUICK, ROOT, make_run, vitedge
from bench_small import write_images

from vitedge.bench.remote import _take_records, source_archive
from vitedge.bench.ssh import LinkFailed, Ssh

SSHD = shutil.which("sshd") or ("/usr/sbin/sshd" if Path("/usr/sbin/sshd").exists() else None)
pytestmark = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh") is None, reason="no OpenSSH server (apt-get install openssh-server)"
)


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """(ssh command, host, home, python) of the board."""
    folder = tmp_path_factory.mktemp("board")
    home = folder / "home"
    home.mkdir()
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    (folder / "authorized").chmod(0o600)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd separates its privileges
    port = _port()
    config = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {folder / 'host'}",
        f"AuthorizedKeysFile {folder / 'authorized'}",
        f"PidFile {folder / 'pid'}",
        "StrictModes no",
        "UsePAM no",
        "PasswordAuthentication no",
        "PermitRootLogin prohibit-password",
        f"SetEnv HOME={home} PYTHONPATH= VITEDGE_ON_BOARD=1",
    ]
    (folder / "sshd_config").write_text("\n".join(config) + "\n")
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=(folder / "log").open("wb"))
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    command = ["ssh", "-p", str(port), "-i", str(folder / "user"), "-o", "StrictHostKeyChecking=no", "-F", "none"]
    command += ["-o", f"UserKnownHostsFile={folder / 'known'}", "-o", "LogLevel=ERROR"]
    host = f"{getpass.getuser()}@127.0.0.1"
    try:
        done = Ssh(host, command).run(f'test "$HOME" = {home}')
        if done.returncode != 0:
            pytest.skip("this sshd does not give the board a home of its own")
        # A Python of its own: the core's packages, an old vitedge, and neither torch nor onnx.
        blocked = home / "block"
        for name in ("torch", "onnx"):
            (blocked / name).mkdir(parents=True)
            (blocked / name / "__init__.py").write_text("raise ImportError('not on a board')\n")
        (blocked / "vitedge").mkdir()
        (blocked / "vitedge/__init__.py").write_text("__version__ = '0.0.1'\n")
        python = home / "python"
        python.write_text(f'#!/bin/sh\nPYTHONPATH=$PYTHONPATH:{blocked} exec {sys.executable} "$@"\n')
        python.chmod(0o755)
        yield command, host, home, "~/python"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("remote")
    write_images(folder / "images")
    return make_run(folder, noise=0.02)


def _bench(board, run, *more, code=0):
    command, host, _, python = board
    flags = ("--host", host, "--ssh", " ".join(command), "--remote-python", python)
    return vitedge("bench", "--run", run, "--data", run.parent / "images", *QUICK, *flags, *more, code=code)


def test_the_whole_way_over_ssh(board, run, tmp_path):
    _, host, home, _ = board
    done = _bench(board, run, "--json", tmp_path / "r.json", "--host-name", "My board")
    result = json.loads((tmp_path / "r.json").read_text())
    assert [row["status"] for row in result["rows"]] == ["ok"] * 3 and result["data"]["n"] == 40
    assert result["rows"][2]["delta_top1"] < 0 and result["rows"][1]["latency_ms"]["n"] >= 10
    assert "has vitedge 0.0.1" in done.stderr and result["host"]["libraries"]["vitedge"] != "0.0.1"
    assert f"[{host}]" in done.stderr and "onnxruntime-int8" in done.stdout
    assert json.loads((run / "bench/my-board.json").read_text())["rows"] == result["rows"]
    assert (run / "bench/work" / result["rows"][1]["records"]).is_file()
    assert len(list((home / ".vitedge").glob("code-*/vitedge/cli/bench.py"))) == 1
    sent = next((home / ".vitedge/packs").glob("*.tar"))
    stamp = sent.stat().st_mtime_ns
    _bench(board, run, "--host-name", "My board")
    assert sent.stat().st_mtime_ns == stamp  # the second run copies nothing


def test_a_copy_that_was_cut_off_goes_on(board, tmp_path):
    command, host, home, _ = board
    data = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(data)
    ssh, sent = Ssh(host, command), []
    (home / "copied").mkdir()
    (home / "copied/file.part").write_bytes(data[:2_000_000])
    ssh.send(tmp_path / "file", "~/copied/file", sent.append)
    assert (home / "copied/file").read_bytes() == data and sent[0] == 2_000_000 and sum(sent) == len(data)
    (home / "copied/file").unlink()
    (home / "copied/file.part").write_bytes(b"x" * 100)
    with pytest.raises(LinkFailed, match="another checksum"):
        ssh.send(tmp_path / "file", "~/copied/file")
    ssh.send(tmp_path / "file", "~/copied/file")
    assert (home / "copied/file").read_bytes() == data


def test_a_link_that_is_cut_in_the_middle_is_a_clear_row_and_resumes(board, run):
    command, host, home, python = board
    done = []
    thread = threading.Thread(
        target=lambda: done.append(
            _bench((command, host, home, python), run, "--limit", "30", "--seconds", "4", code=1)
        )
    )
    thread.start()
    packs, cut = home / ".vitedge/packs", False
    while thread.is_alive() and not cut:
        begun = list(packs.glob("*.unpacked/bench/work/*/onnxruntime-int8*.rec"))
        cut = bool(begun and list(packs.glob("*.unpacked/bench/*.json")) and _cut(home))
        time.sleep(0.05)
    thread.join(timeout=120)
    assert cut, "the run was over before it could be cut off"
    assert "run the same command again" in done[0].stdout
    assert "onnxruntime-fp32: failed" in done[0].stdout
    again = _bench(board, run, "--limit", "30")
    assert "30 images" in again.stdout and "failed" not in again.stdout


def _cut(home: Path) -> bool:
    """Kills the sshd process of the session that runs vitedge, as a pulled cable ends it."""
    for status in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = status.read_bytes()
            line = (status.parent / "cmdline").read_bytes()
            parent = int((status.parent / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if f"HOME={home}".encode() in environment and b"bench" in line and b"vitedge.bench.child" not in line:
            try:
                while parent > 1:
                    name = Path(f"/proc/{parent}/comm").read_text().strip()
                    if name.startswith("sshd"):
                        os.kill(parent, 9)
                        return True
                    parent = int(Path(f"/proc/{parent}/stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:  # one of them has just ended
                continue
    return False


def test_hosts_that_can_not_are_told_apart_and_the_others_go_on(board, run):
    command, host, home, _ = board
    (home / "old").write_text('#!/bin/sh\necho \'{"python": [3, 8, 10], "missing": [], "vitedge": null}\'\n')
    (home / "bare").write_text('#!/bin/sh\necho \'{"python": [3, 11, 2], "missing": ["PIL"], "vitedge": null}\'\n')
    for name in ("old", "bare"):
        (home / name).chmod(0o755)
    assert "has Python 3.8.10, and vitedge needs 3.10" in _bench((command, host, home, "~/old"), run, code=1).stdout
    assert "pip install pillow" in _bench((command, host, home, "~/bare"), run, code=1).stdout
    assert "has no Python" in _bench((command, host, home, "~/none"), run, code=1).stdout
    refused = ["ssh", "-p", str(_port()), "-F", "none"]
    assert "Connection refused" in _bench((refused, "nobody@127.0.0.1", home, "python3"), run, code=1).stdout
    both = _bench(board, run, "--host", "nobody@127.0.0.1", code=1)
    assert "Permission denied" in both.stdout and "Accuracy" in both.stdout


def test_a_host_is_no_option_and_a_foreign_archive_writes_nothing(tmp_path):
    with pytest.raises(LinkFailed):
        Ssh("-oProxyCommand=evil")
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("work/../../evil.rec", "/evil.rec", "work/0123456789ab/a.rec", "work/0123456789ab/a.sh"):
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
    _take_records(buffer.getvalue(), tmp_path / "keep")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.rec"]
    with tarfile.open(fileobj=io.BytesIO(source_archive())) as tar:
        names = tar.getnames()
    assert "vitedge/bench/child.py" in names and all(name.startswith("vitedge/") for name in names)
    assert (ROOT / "vitedge/__init__.py").is_file()
