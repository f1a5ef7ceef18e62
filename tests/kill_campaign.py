"""Kills a command at its N-th change of the file system, runs it again, and compares with a run that was never killed.

    python kill_campaign.py START WORK POINTS AGAIN ARGUMENT...

One process imports what the command needs and forks for each point, which takes a tenth of starting Python anew. The
points are counted by an audit hook: opening a file to write, renaming, removing, making and removing folders, starting
a process. `START` is the folder as the command finds it; all runs are in `WORK`, so that paths in results are alike.
`AGAIN` is what the next run has beside the arguments, such as --resume. Prints a JSON object: the number of changes,
the points tried, and what was wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree", "subprocess.Popen"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
EVENT_FILE = re.compile(r"events\.out\.tfevents\..*")  # TensorBoard's names hold the time and the process
# What differs from run to run in JSON files.
TIMES = ("seconds", "digest", "key", "tools")


def hook(work: Path, stop: int, count: list[int]):
    """An audit hook that kills this process at change number `stop` below `work`; 0 never does."""
    inside = str(work)

    def audit(event: str, args: tuple) -> None:
        if event == "open":
            path, mode, flags = args
            changes = bool((flags or 0) & WRITES) or (isinstance(mode, str) and bool(set(mode) & set("wax+")))
        elif event in EVENTS:
            path, changes = args[0], True
        else:
            return
        if not changes:
            return
        if event != "subprocess.Popen":
            if not isinstance(path, (str, bytes, os.PathLike)):
                return
            if not os.path.abspath(os.fsdecode(path)).startswith(inside):
                return
        count[0] += 1
        if count[0] == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    return audit


def run(work: Path, arguments: list[str], stop: int = -1) -> tuple[int, int]:
    """Status of the command in `work` (negative: the signal), and how many changes it made; stop -1: uncounted."""
    report = work.parent / "count"
    report.unlink(missing_ok=True)
    if (child := os.fork()) == 0:
        log = os.open(work.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(work)
        status = 1
        try:
            from vitedge import cli

            sys.argv = ["vitedge", *arguments]
            count = [0]
            if stop >= 0:
                sys.addaudithook(hook(work, stop, count))
            try:
                cli.main()
                status = 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(bool(end.code))
            if stop == 0:
                report.write_text(str(count[0]))
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    changes = int(report.read_text()) if report.exists() else 0
    return os.waitstatus_to_exitcode(status), changes


def tree(work: Path) -> dict[str, str]:
    """Path -> digest of all files, hidden ones included; a folder has "/" behind it."""
    found = {}
    for path in sorted(work.rglob("*")):
        name = EVENT_FILE.sub("events", str(path.relative_to(work)))
        if path.name == ".lock":
            continue
        if path.is_dir():
            found[name + "/"] = ""
        elif path.suffix == ".json":
            found[name] = hashlib.sha256(json.dumps(plain(json.loads(path.read_text()))).encode()).hexdigest()
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def plain(value):
    """Without times, and without what is derived from them."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items() if key not in TIMES}
    return [plain(one) for one in value] if isinstance(value, list) else value


def left(token: str) -> list[str]:
    """What a killed run may leave beside its folder: processes of ours, and folders of processes that are gone."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if token.encode() in (entry / "environ").read_bytes():
                    found.append(f"process {entry.name}: {(entry / 'cmdline').read_bytes()[:200]!r}")
            except OSError:
                continue
    return found


def campaign(start: Path, work: Path, points: int, again: list[str], arguments: list[str]) -> dict[str, object]:
    # Only processes that the command starts have it in their environment, not those that are forked.
    token = f"campaign-{os.getpid()}"
    os.environ["VITEDGE_CAMPAIGN"] = token

    def fresh() -> None:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(start, work, symlinks=True)

    trees, changes = [], 0
    for _ in range(2):
        fresh()
        status, changes = run(work, arguments, 0)
        if status:
            return {"changes": 0, "points": 0, "wrong": [f"never killed, it exits with {status}"]}
        trees.append(tree(work))
    # Measured times and drawn thumbnails differ between two good runs: there, only that the file is there is compared.
    steady = {name for name, digest in trees[0].items() if trees[1].get(name) == digest}
    wrong, tried = [], 0
    for number in range(points):
        stop = 1 + number * (changes - 1) // max(points - 1, 1)
        fresh()
        status, _ = run(work, arguments, stop)
        tried += 1
        if status != -signal.SIGKILL:
            if status:
                wrong.append(f"change {stop}: it ended with {status} instead of being killed")
            continue
        deadline = time.monotonic() + 5
        while (alive := left(token)) and time.monotonic() < deadline:
            time.sleep(0.05)
        wrong += [f"change {stop}: left {one}" for one in alive]
        status, _ = run(work, arguments + again)
        if status:
            wrong.append(f"change {stop}: the next run exits with {status}")
            continue
        found = tree(work)
        for name in sorted(set(found) ^ set(trees[0])):
            wrong.append(f"change {stop}: {name} {'is left' if name in found else 'is missing'}")
        changed = [name for name in sorted(steady & set(found)) if found[name] != trees[0][name]]
        wrong += [f"change {stop}: {name} is another one" for name in changed]
    return {"changes": changes, "points": tried, "wrong": wrong, "steady": len(steady), "files": len(trees[0])}


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401

    import vitedge.cli.bench
    import vitedge.cli.train
    import vitedge.steps.export
    import vitedge.steps.quantize
    import vitedge.train.finetune
    import vitedge.vit.checkpoint  # noqa: F401

    start, work, points, again, *arguments = sys.argv[1:]
    print(json.dumps(campaign(Path(start), Path(work), int(points), again.split(), arguments)))
