"""What a long build says while it works: the compiler's own stages, read from its log."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from vitedge.cli import console
from vitedge.errors import VitedgeError
from vitedge.targets.rknn.client import Worker
from vitedge.targets.rknn.stages import doing
from vitedge.targets.rknn.toolchain import Toolchain

BARS = "I Loading : 100%|####| 58/58 [00:00<00:00, 9it/s]\nD fuse_ops ...\n\rI Quantizating :   0%|   | 0/50\r"


@pytest.mark.parametrize(
    ("op", "log", "text"),
    [
        ("quantize", "", "finding the ranges of INT8 on the calibration images"),
        ("quantize", BARS, "finding the ranges of INT8 on the calibration images (Quantizating 0 %)"),
        ("quantize", BARS + "I Quantizating :  12%|#", "finding the ranges of INT8 on the calibration images (Qu"),
        ("assemble", BARS + "I rknn building ...\n", "compiling the quantised model (rknn building)"),
        ("build_float", "D     fold_constant ...\nD     fold_constant done.\n", "compiling the model in float16 (f"),
        ("infer", "W half a bar:  3%|", "computing images in the simulator"),
        ("somebody", BARS, ""),
    ],
)
def test_stages(op: str, log: str, text: str) -> None:
    assert doing(op, log).startswith(text) and (text or not doing(op, log))
    if "12%" in log:
        assert doing(op, log).endswith("(Quantizating 12 %)")


def test_of_a_running_worker(tmp_path: Path) -> None:
    log = tmp_path / "build.log"
    log.write_text("I Loading : 50%|\n")  # of an earlier request
    with Worker(Toolchain(sys.executable, "", ""), log=log) as worker:
        assert worker.doing() == ""
        with pytest.raises(VitedgeError):
            worker.request("export", path="x.rknn")  # nothing was built
        assert worker.doing() == "writing the .rknn"
        log.open("a").write("I Saving : 70%|\n")
        assert worker.doing() == "writing the .rknn (Saving 70 %)"
        log.unlink()
        assert worker.doing() == ""


def test_the_command_line_says_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "_BUSY_S", 0.01)
    said: list[str] = []
    monkeypatch.setattr(console.err, "print", lambda text, **_: said.append(text))
    with console.ConsoleReporter().busy("building x") as at:
        at.ask = lambda: "compiling (Loading 3 %)"
        for _ in range(500):
            if any("so far, compiling" in line for line in said):
                break
            time.sleep(0.01)
    assert any(line.startswith("building x: 0 s so far, compiling (Loading 3 %)") for line in said), said
