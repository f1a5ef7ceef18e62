"""What code makes a step's result: the modules of vitedge that its own modules can import, read from the sources.

Nothing is imported: the imports are those of the syntax tree, also the lazy ones inside functions. Two rules keep a
step from depending on everything: what stands under `if TYPE_CHECKING` is not imported; and a package that is imported
for one name (`from vitedge.quant import calibrate`) counts with what its `__init__` imports at once and with what it
imports for that name, not with all the other names that it would load when asked for them.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vitedge import __version__

ROOT = Path(__file__).resolve().parent.parent
# Libraries whose version may change what a step computes, where its code imports them.
LIBRARIES = ("torch", "torchvision", "onnx", "onnxruntime", "numpy", "PIL")
_DISTRIBUTIONS = {"PIL": "pillow"}


@dataclass(frozen=True)
class Import:
    """`from module import name`, or `import module` (name is empty); `owner`: the definition at the top that it is in,
    empty at the top itself."""

    module: str
    name: str
    owner: str


@dataclass(frozen=True)
class _Source:
    data: bytes
    imports: tuple[Import, ...]
    lazy: dict[str, str]  # names that `__getattr__` loads -> their module
    is_package: bool


def closure(*roots: str, root: Path = ROOT) -> dict[str, bytes]:
    """Module -> source of all that these modules can reach inside vitedge; a package stands for all modules in it.

    Raises ValueError for a root that is no module.
    """
    return _reached(roots, root)[0]


def code_version(*roots: str, root: Path = ROOT) -> str:
    """Digest of `closure`: a step's results are as old as the code that makes them."""
    digest = hashlib.sha256()
    for name, data in sorted(closure(*roots, root=root).items()):
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()[:16]


def library_versions(*roots: str, root: Path = ROOT) -> dict[str, str]:
    """The versions of vitedge and of the libraries that the code imports; "" for one that is not installed."""
    used = _reached(roots, root)[1] & set(LIBRARIES)
    return {"vitedge": __version__} | {name: _version(name) for name in sorted(used)}


@cache
def _version(library: str) -> str:
    try:
        return importlib.metadata.version(_DISTRIBUTIONS.get(library, library))
    except importlib.metadata.PackageNotFoundError:
        return ""


def _reached(roots: tuple[str, ...], root: Path) -> tuple[dict[str, bytes], set[str]]:
    """Sources by module, and the packages outside vitedge that they import."""
    sources: dict[str, bytes] = {}
    outside: set[str] = set()
    waiting = [Import(module, "*", "") for name in roots for module in _below(name, root)]
    seen = set(waiting)
    while waiting:
        wanted = waiting.pop()
        if not (wanted.module + ".").startswith("vitedge."):
            outside.add(wanted.module.partition(".")[0])
            continue
        if (file := _file(wanted.module, root)) is None:
            continue
        source = _read(file, file.stat().st_mtime_ns)
        sources[wanted.module] = source.data
        for found in [*_parents(wanted.module), *_edges(source, wanted, root)]:
            if found not in seen:
                seen.add(found)
                waiting.append(found)
    return sources, outside


def _parents(module: str) -> Iterator[Import]:
    # Importing a module runs the __init__ of the packages above it.
    while module := module.rpartition(".")[0]:
        yield Import(module, "", "")


def _edges(source: _Source, wanted: Import, root: Path) -> Iterator[Import]:
    """What importing `wanted` imports in turn."""
    name = wanted.name
    everything = name == "*" or not source.is_package
    for one in source.imports:
        if everything or one.owner == "" or one.owner == name or (one.owner == "__getattr__" and one.name == name):
            yield Import(one.module, one.name, "")
    if everything:
        yield from (Import(module, key, "") for key, module in source.lazy.items())
    elif name in source.lazy:
        yield Import(source.lazy[name], name, "")
    elif name and _file(f"{wanted.module}.{name}", root):
        yield Import(f"{wanted.module}.{name}", "", "")


@cache
def _read(file: Path, _modified_ns: int) -> _Source:
    data = file.read_bytes()
    imports: list[Import] = []
    lazy: dict[str, str] = {}
    tree = ast.parse(data, str(file))
    loads = any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in tree.body)
    for statement in tree.body:
        owner = statement.name if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) else ""
        for node in _executed(statement):
            if isinstance(node, ast.Import):
                imports += [Import(alias.name, "", owner) for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imports += [Import(node.module, alias.name, owner) for alias in node.names]
            elif isinstance(node, ast.Dict) and loads and not owner:
                pairs = zip(node.keys, node.values, strict=True)
                lazy |= {
                    str(key.value): str(value.value)
                    for key, value in pairs
                    if isinstance(key, ast.Constant) and isinstance(value, ast.Constant)
                    if str(value.value).startswith("vitedge.")
                }
    return _Source(data, tuple(imports), lazy, file.name == "__init__.py")


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below, but for the bodies of `if TYPE_CHECKING`."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _executed(child)


def _file(module: str, root: Path) -> Path | None:
    path = root.joinpath(*module.split("."))
    for file in (path.with_suffix(".py") if path.suffix == "" else path, path / "__init__.py"):
        if file.is_file():
            return file
    return None


def _below(name: str, root: Path) -> list[str]:
    file = _file(name, root)
    if file is None:
        raise ValueError(f"no module {name}")
    if file.name != "__init__.py":
        return [name]
    parts = [path.relative_to(root).with_suffix("").parts for path in sorted(file.parent.rglob("*.py"))]
    return [".".join(part[:-1] if part[-1] == "__init__" else part) for part in parts]
