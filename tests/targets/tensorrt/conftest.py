"""The three real binding versions, for every test of the TensorRT target."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def load(name: str) -> ModuleType:
    """A helper module that lies beside this file (tests are no package)."""
    spec = importlib.util.spec_from_file_location(
        f"tensorrt_test_{name}", Path(__file__).with_name(f"{name}.py")
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

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
