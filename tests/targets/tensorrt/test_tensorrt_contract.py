"""Every TensorRT name, signature and enum member that the package uses, held against three real versions.

The names are read from the package's source: an attribute of a variable that `api.OBJECTS` lists is one of
that class. This checks names and signatures; it says nothing of behaviour.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import vitedge.targets.tensorrt as package
from vitedge.targets.tensorrt.api import OBJECTS

bindings = sys.modules["tensorrt_test_bindings"]  # loaded by conftest.py
SOURCES = sorted(Path(package.__file__).parent.glob("*.py"))
# What TensorRT 11 removed; none may be used on any version.
REMOVED = ["BuilderFlag.FP16", "BuilderFlag.INT8", "BuilderFlag.OBEY_PRECISION_CONSTRAINTS"]
REMOVED += ["NetworkDefinitionCreationFlag.EXPLICIT_BATCH", "IInt8EntropyCalibrator2"]
REMOVED += ["IBuilderConfig.int8_calibrator", "IBuilderConfig.set_calibration_profile"]
REMOVED += ["IBuilderConfig.algorithm_selector", "Builder.platform_has_fast_fp16"]


@dataclass(frozen=True)
class Use:
    """One place where a TensorRT name is used. `call` is (positional arguments, keywords), or None."""

    place: str
    path: tuple[str, ...]
    call: tuple[int, tuple[str, ...]] | None
    assigned: bool


def dotted(node: ast.expr) -> list[str]:
    """trt.BuilderFlag.TF32 -> its parts; self.engine -> ["engine"]; empty for anything else."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return [node.attr] if inner == ["self"] else [*inner, node.attr] if inner else []
    return []


def uses(source: Path) -> list[Use]:
    """The uses of TensorRT in a file."""
    tree = ast.parse(source.read_text())
    calls = {id(n.func): n for n in ast.walk(tree) if isinstance(n, ast.Call)}
    inner = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or id(node) in inner:
            continue
        parts = dotted(node)
        if len(parts) < 2 or parts[0] not in OBJECTS | {"trt": ""}:
            continue
        path = parts[1:] if parts[0] == "trt" else [OBJECTS[parts[0]], *parts[1:]]
        call = calls.get(id(node))
        shape = (len(call.args), tuple(k.arg or "**" for k in call.keywords)) if call else None
        place = f"{source.name}:{node.lineno}"
        found.append(Use(place, tuple(path), shape, isinstance(node.ctx, ast.Store)))
    return found


def find(api: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any] | None:
    entry: dict[str, Any] | None = {"members": api["members"]}
    for name in path:
        entry = (entry or {}).get("members", {}).get(name)
    return entry


def fits(entry: dict[str, Any], use: Use) -> bool:
    """Whether some overload takes the call."""
    count, keywords = use.call or (0, ())
    name = "__init__" if entry["kind"] == "class" else use.path[-1]
    doc = entry["members"]["__init__"]["doc"] if entry["kind"] == "class" else entry["doc"]
    for parameters in bindings.signatures(doc, name):
        names = [parameter for parameter, _ in parameters]
        needed = [parameter for parameter, default in parameters[count:] if not default]
        if count <= len(names) and set(keywords) <= set(names[count:]) and set(needed) <= set(keywords):
            return True
    return False


ALL = [use for source in SOURCES for use in uses(source)]


def test_the_reader_finds_what_is_used():
    """A reader that finds nothing would pass everything."""
    paths = {use.path for use in ALL}
    assert ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED") in paths
    assert ("IExecutionContext", "execute_async_v3") in paths
    assert ("IBuilderConfig", "progress_monitor") in {use.path for use in ALL if use.assigned}
    assert len(paths) > 45


@pytest.mark.parametrize("version", [release.version for release in bindings.RELEASES])
def test_every_name_exists_in(version: str, apis: dict[str, Any]) -> None:
    missing = [f"{use.place}: {'.'.join(use.path)}" for use in ALL if not _known(apis[version], use)]
    assert not missing


def _known(api: dict[str, Any], use: Use) -> bool:
    return use.path == ("__version__",) or find(api, use.path) is not None


@pytest.mark.parametrize("version", [release.version for release in bindings.RELEASES])
def test_every_call_and_assignment_fits(version: str, apis: dict[str, Any]) -> None:
    wrong = []
    for use in ALL:
        entry = find(apis[version], use.path)
        if entry is None or use.path[-1] == "__init__":
            continue
        if use.call is not None and (entry["kind"] not in ("method", "class") or not fits(entry, use)):
            wrong.append(f"{use.place}: call of {'.'.join(use.path)} with {use.call}")
        if use.assigned and not entry.get("settable"):
            wrong.append(f"{use.place}: {'.'.join(use.path)} can't be set")
        if use.call is None and not use.assigned and entry["kind"] == "method":
            wrong.append(f"{use.place}: {'.'.join(use.path)} is a method and is not called")
    assert not wrong


@pytest.mark.parametrize("version", [release.version for release in bindings.RELEASES])
def test_overridden_methods_have_the_vendors_parameters(version: str, apis: dict[str, Any]) -> None:
    """`ILogger.log` and `IProgressMonitor` are called back with these arguments."""
    seen = 0
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            bases = [dotted(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
            for base in bases:
                if base[:1] != ["trt"]:
                    continue
                vendor = find(apis[version], tuple(base[1:]))
                assert vendor is not None
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                        names = [a.arg for a in method.args.args[1:]]
                        doc = vendor["members"][method.name]["doc"]
                        wanted = [[p for p, _ in s] for s in bindings.signatures(doc, method.name)]
                        assert names in wanted, f"{source.name}:{method.lineno}"
                        seen += 1
    assert seen == 4


def test_nothing_that_11_removed_is_used(apis: dict[str, Any]) -> None:
    """The list is true of the vendor's bindings, and our source has none of it."""
    used = {".".join(use.path) for use in ALL}
    for name in REMOVED:
        path = tuple(name.split("."))
        assert find(apis["10.3.0"], path) is not None, name
        assert find(apis["11.4.0.106"], path) is None, name
        assert name not in used
    # And by the words themselves, wherever they may stand.
    text = "".join(source.read_text() for source in SOURCES)
    for word in ("trt.BuilderFlag.FP16", "BuilderFlag.INT8", "Calibrator", "EXPLICIT_BATCH", "execute_v2"):
        assert word not in text


def test_the_check_can_fail(apis: dict[str, Any], tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "def f(trt, config, context):\n"
        "    config.set_flag(trt.BuilderFlag.FP16)\n"
        "    context.execute_async_v3()\n"
        "    config.int8_calibrator = None\n"
    )
    found = uses(wrong)
    api = apis["11.4.0.106"]
    unknown = {u.path for u in found if not _known(api, u)}
    assert unknown == {("IBuilderConfig", "int8_calibrator"), ("BuilderFlag", "FP16")}
    call = next(u for u in found if u.path[-1] == "execute_async_v3")
    entry = find(api, call.path)
    assert entry is not None and not fits(entry, call)
