"""The three real binding versions, for every test of the TensorRT target."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def load(name: str) -> ModuleType:
    """A helper module that lies beside this file (tests are no package)."""
    spec = importlib.util.spec_from_file_location(f"tensorrt_test_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


bindings = load("bindings")


@pytest.fixture(scope="session")
def apis() -> dict[str, dict[str, Any]]:
    """Version -> its API as `bindings.read_api` gives it. Skipped offline, unless VITEDGE_REQUIRE_BINDINGS is
    set.
    """
    try:
        return {r.version: bindings.read_api(r, bindings.cache_folder()) for r in bindings.RELEASES}
    except (OSError, subprocess.CalledProcessError) as error:
        why = f"{error} {getattr(error, 'stderr', '') or ''}"
        if os.environ.get("VITEDGE_REQUIRE_BINDINGS"):
            pytest.fail(f"the TensorRT bindings could not be prepared: {why}")
        pytest.skip(f"no TensorRT bindings (pip, gcc and the package index are needed): {why}")


standin = load("standin")


@pytest.fixture(params=[release.version for release in bindings.RELEASES])
def trt(request: pytest.FixtureRequest, apis: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in module `tensorrt` of each version, importable; `trt.script` scripts its methods."""
    script: dict[str, Any] = {}
    module = standin.make(apis[request.param], script, bindings)
    module.script = script
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


@pytest.fixture(scope="session")
def cudart(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The stand-in libcudart, compiled."""
    path = tmp_path_factory.mktemp("cudart") / "libcudart.so"
    source = Path(__file__).with_name("cudart.c")
    try:
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", path, source], check=True, capture_output=True)
    except OSError:
        pytest.skip("no gcc")
    return ctypes.CDLL(str(path))


@pytest.fixture
def device(cudart: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    """The stand-in as the machine's CUDA, with counters at zero."""
    from vitedge.targets.tensorrt import cuda

    for name, value in {"fail_malloc": 0, "device_count": 1, "live": 0, "launches": 0, "copies": 0}.items():
        ctypes.c_int.in_dll(cudart, name).value = value
    monkeypatch.setattr(cuda, "candidates", lambda: iter([cudart._name]))
    cuda.load.cache_clear()
    yield cudart
    cuda.load.cache_clear()
