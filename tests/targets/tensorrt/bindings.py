"""The real TensorRT Python bindings of three versions, read without TensorRT.

The bindings are an extension module on the package index; the libraries behind them need an NVIDIA driver.
They import all the same where shared libraries of the right names supply the nine entry points that they ask
for. So every class, method, property and enum member, with its signature and docstring, can be read from the
vendor's own build. That checks names and signatures; it says nothing of behaviour.

    python tests/targets/tensorrt/bindings.py     prepares the cache (needs pip, gcc and the package index)
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Release:
    """A version of the bindings, and where it is met."""

    package: str
    version: str
    met_on: str

    @property
    def major(self) -> str:
        return self.version.split(".")[0]


RELEASES = (
    Release("tensorrt_cu12_bindings", "10.3.0", "JetPack 6"),
    Release("tensorrt_cu12_bindings", "10.13.3.9", "JetPack 7"),
    Release("tensorrt_cu13_bindings", "11.4.0.106", "TensorRT 11"),
)
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
)


def cache_folder() -> Path:
    """Outside the repository: VITEDGE_TEST_CACHE, or the user's cache folder."""
    base = os.environ.get("VITEDGE_TEST_CACHE") or Path.home() / ".cache" / "vitedge-tests"
    return Path(base) / f"tensorrt-py{sys.version_info.major}{sys.version_info.minor}"


def download(requirement: str, folder: Path) -> Path:
    """The wheel of `requirement` in `folder`, by pip."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), requirement]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return next(folder.glob("*.whl"))


def empty_library(path: Path) -> None:
    """A shared library of the nine entry points, each of which does nothing."""
    source = path.parent / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in ENTRY_POINTS))
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", path, source], check=True, capture_output=True, text=True
    )


def prepare(release: Release, cache: Path) -> Path:
    """The folder from which `import tensorrt_bindings` gives that release; made on the first call."""
    ready = cache / release.version
    if ready.is_dir():
        return ready
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        made = Path(temporary, "site")
        with zipfile.ZipFile(download(f"{release.package}=={release.version}", Path(temporary))) as wheel:
            wheel.extractall(made)
        # The extension looks for its libraries beside itself first.
        package = made / "tensorrt_bindings"
        for library in LIBRARIES:
            empty_library(package / f"lib{library}.so.{release.major}")
        (package / "empty.c").unlink()
        try:
            made.rename(ready)
        except OSError:  # another process was faster
            shutil.rmtree(made, ignore_errors=True)
    return ready


# Runs in a process of its own: two versions can't live in one.
READ = """
import inspect, json, sys
import tensorrt_bindings as trt

def describe(value):
    kind = type(value).__name__
    if isinstance(value, property):
        return {"kind": "property", "settable": value.fset is not None, "doc": value.fget.__doc__ or ""}
    if inspect.isclass(value):
        return {"kind": "class", "doc": value.__doc__ or ""}
    if callable(value):
        return {"kind": "method", "doc": getattr(value, "__doc__", "") or ""}
    return {"kind": "member" if hasattr(type(value), "__members__") else kind, "doc": ""}

def read(owner, depth):
    out = {}
    for name in dir(owner):
        if name.startswith("_") and name != "__init__":
            continue
        value = inspect.getattr_static(owner, name) if inspect.isclass(owner) else getattr(owner, name)
        if isinstance(value, staticmethod) or type(value).__name__ == "instancemethod":
            value = getattr(owner, name)
        out[name] = describe(value)
        if inspect.isclass(value) and depth:
            out[name]["members"] = read(value, depth - 1)
    return out

json.dump({"version": trt.__version__, "members": read(trt, 2)}, sys.stdout)
"""


def read_api(release: Release, cache: Path) -> dict[str, Any]:
    """{"version": str, "members": {name: {"kind", "doc", "settable"?, "members"?}}} of that release."""
    site = prepare(release, cache)
    stored = site / "api.json"
    if not stored.is_file():
        environment = {**os.environ, "PYTHONPATH": str(site)}
        result = subprocess.run(
            [sys.executable, "-c", READ], check=True, capture_output=True, text=True, env=environment
        )
        stored.write_text(result.stdout)
    api: dict[str, Any] = json.loads(stored.read_text())
    assert api["version"] == release.version
    return api


def signatures(doc: str, name: str) -> list[list[tuple[str, bool]]]:
    """Each overload in a pybind docstring as [(parameter, has a default)], `self` left out."""
    found = []
    for match in re.finditer(rf"^\s*(?:\d+\. )?{re.escape(name)}\((self.*)\) -> ", doc, re.MULTILINE):
        parameters, depth, current = [], 0, ""
        for character in match[1] + ",":
            depth += (character in "([{<") - (character in ")]}>")
            if character == "," and depth == 0:
                parameters.append(current.strip())
                current = ""
            else:
                current += character
        found.append([(p.split(":")[0].split("=")[0].strip(), "=" in p) for p in parameters[1:]])
    return found


if __name__ == "__main__":
    for one in RELEASES:
        print(f"{one.package} {read_api(one, cache_folder())['version']} ({one.met_on})")
