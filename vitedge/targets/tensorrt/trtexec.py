"""The same build by NVIDIA's own command-line tool, for boards without the Python bindings and for bug
reports.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from vitedge.errors import VitedgeError
from vitedge.targets.tensorrt.network import EngineSpec

_PLACES = ("/usr/src/tensorrt/bin/trtexec", "/opt/tensorrt/bin/trtexec")


def find_trtexec() -> str | None:
    """Where trtexec lies: on the path, or where JetPack puts it."""
    return shutil.which("trtexec") or next((p for p in _PLACES if Path(p).is_file()), None)


def trtexec_version(tool: str) -> str | None:
    """ "10.3.0" from trtexec's banner (`[TensorRT v100300]`), or None."""
    try:
        result = subprocess.run([tool, "--help"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if not (found := re.search(r"TensorRT[. ]v(\d{4,6})", result.stdout + result.stderr)):
        return None
    number = int(found[1])
    # 10.3.0 is 100300, 8.5.2 was 8502.
    digits, unit = (10000, 100) if number >= 100000 else (1000, 10)
    return f"{number // digits}.{number // 100 % unit}.{number % 100}"


def command(
    spec: EngineSpec,
    engine: Path,
    image_shape: tuple[int, ...],
    *,
    tool: str = "trtexec",
    version: tuple[int, int] = (10, 3),
    timing_cache: Path | None = None,
    layers: Path | None = None,
) -> list[str]:
    """The command line that builds the same engine. TensorRT 11 is always strongly typed and has no flag for
    it.
    """
    line = [tool, f"--onnx={spec.onnx}", f"--saveEngine={engine}", "--skipInference"]
    if version < (11, 0):
        line.append("--stronglyTyped")
    line.append("--profilingVerbosity=detailed")
    for index, one in enumerate(spec.profiles):
        if len(spec.profiles) > 1:
            line.append(f"--profile={index}")
        for kind, size in (("min", one.lo), ("opt", one.best), ("max", one.hi)):
            line.append(f"--{kind}Shapes=pixels:{'x'.join(str(n) for n in (size, *image_shape))}")
    if spec.workspace_mib is not None:
        line.append(f"--memPoolSize=workspace:{spec.workspace_mib}")
    if spec.opt_level is not None:
        line.append(f"--builderOptimizationLevel={spec.opt_level}")
    if not spec.tf32:
        line.append("--noTF32")
    if spec.version_compatible:
        line.append("--versionCompatible")
    if spec.sparse:
        line.append("--sparsity=enable")
    if spec.hardware_compatible:
        line.append("--hardwareCompatibilityLevel=ampere+")
    if spec.dla is not None:
        line += [f"--useDLACore={spec.dla}", "--allowGPUFallback"]
    if timing_cache is not None:
        line.append(f"--timingCacheFile={timing_cache}")
    if layers is not None:
        line.append(f"--exportLayerInfo={layers}")
    return line


def build(line: list[str], log: Path, timeout_s: float = 3600) -> None:
    """Runs the command; its output goes to `log`. Raises VitedgeError with trtexec's own words."""
    try:
        with log.open("wb") as file:
            code = subprocess.run(line, stdout=file, stderr=subprocess.STDOUT, timeout=timeout_s).returncode
    except (OSError, subprocess.TimeoutExpired) as error:
        raise VitedgeError("trtexec could not be run.", str(error), "", exit_code=1) from error
    if code:
        lines = log.read_text(errors="replace").splitlines()
        errors = [text for text in lines if "[E]" in text] or lines[-3:]
        words = f"killed by signal {-code}; " if code < 0 else ""
        raise VitedgeError(
            "trtexec could not build the engine.",
            words + " ".join(errors[-3:]),
            f"The whole log is in {log.name}. Killed without a word, it was out of memory: add swap.",
            exit_code=1,
        )


def infer(tool: str, engine: Path, pixels: np.ndarray, folder: Path, *, dynamic: bool) -> np.ndarray:
    """Logits of one batch through trtexec, by files: pixels uint8 [N, H, W, C] -> float32 [N, classes]."""
    source, target = folder / "pixels.bin", folder / "logits.json"
    source.write_bytes(np.ascontiguousarray(pixels).tobytes())
    line = [tool, f"--loadEngine={engine}", f"--loadInputs=pixels:{source}", f"--exportOutput={target}"]
    line += ["--iterations=1", "--warmUp=0", "--duration=0"]
    if dynamic:
        line.append(f"--shapes=pixels:{'x'.join(str(n) for n in pixels.shape)}")
    build(line, folder / "gate.log", timeout_s=600)
    return read_output(json.loads(target.read_text()), len(pixels))


def read_output(exported: Any, n: int) -> np.ndarray:
    """The logits in the JSON of `--exportOutput`: [{"name", "dimensions", "values"}]."""
    values = next(one["values"] for one in exported if one["name"] == "logits")
    return np.asarray(values, np.float32).reshape(n, -1)
