"""A module `tensorrt` made from the vendor's real signatures, for tests of control flow only.

Every class, enum, method and property comes from the bindings' own docstrings. A call that no overload takes,
a property that can't be set and a name that does not exist raise, as the real module would. A method returns
what its signature says (an empty instance, True, 0, ""), unless the test scripts it. It computes nothing.
"""

from __future__ import annotations

import enum
import re
import types
from collections.abc import Callable
from typing import Any

Script = dict[str, Callable[..., Any]]


def make(api: dict[str, Any], script: Script, bindings: Any) -> types.ModuleType:
    """The stand-in for that version. `script` maps "Class.method" or "Class.property" to a function of
    (self, *arguments); it is read at each call, so a test may change it. Calls are kept in `module.calls`.
    """
    module = types.ModuleType("tensorrt")
    module.__version__ = api["version"]  # type: ignore[attr-defined]
    module.calls = []  # type: ignore[attr-defined]
    for name, entry in api["members"].items():
        if entry["kind"] == "class":
            setattr(module, name, _class(name, entry, module, script, bindings))
    module.Logger.Severity = module.ILogger.Severity  # type: ignore[attr-defined]
    return module


def _class(name: str, entry: dict[str, Any], module: Any, script: Script, bindings: Any) -> type:
    members = entry.get("members", {})
    constants = [m for m, e in members.items() if e["kind"] not in ("method", "property", "class")]
    if constants and {"name", "value"} <= set(members):
        return enum.IntEnum(name, {m: i for i, m in enumerate(constants)})
    methods = {m: e for m, e in members.items() if e["kind"] == "method" and m != "__init__"}
    properties = {m: e for m, e in members.items() if e["kind"] == "property"}
    body: dict[str, Any] = {}
    for method, described in methods.items():
        body[method] = _method(name, method, described["doc"], module, script, bindings)
    for prop, described in properties.items():
        body[prop] = _property(name, prop, described, module, script)
    if "__init__" in members:
        doc = members["__init__"]["doc"]
        body["__init__"] = _method(name, "__init__", doc, module, script, bindings)
    made = type(name, (), body)
    for inner, described in members.items():
        if described["kind"] == "class":
            nested = _class(inner, described, module, script, bindings)
            setattr(made, inner, nested)
            if issubclass(nested, enum.IntEnum):
                for member in nested:
                    setattr(made, member.name, member)
    return made


def _method(owner: str, name: str, doc: str, module: Any, script: Script, bindings: Any) -> Callable[..., Any]:
    overloads = bindings.signatures(doc, name)
    returned = re.search(rf"{re.escape(name)}\(self.*\) -> (\S+)", doc)

    def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
        module.calls.append((f"{owner}.{name}", arguments, keywords))
        if overloads and not any(_takes(o, len(arguments), keywords) for o in overloads):
            raise TypeError(f"{owner}.{name}(): incompatible function arguments {arguments} {keywords}")
        if scripted := script.get(f"{owner}.{name}"):
            return scripted(self, *arguments, **keywords)
        return None if name == "__init__" else _default(returned[1] if returned else "None", module)

    return call


def _takes(parameters: list[tuple[str, bool]], count: int, keywords: dict[str, Any]) -> bool:
    names = [parameter for parameter, _ in parameters]
    needed = {parameter for parameter, default in parameters[count:] if not default}
    return count <= len(names) and set(keywords) <= set(names[count:]) and needed <= set(keywords)


def _property(owner: str, name: str, entry: dict[str, Any], module: Any, script: Script) -> property:
    returned = re.search(r"-> (\S+)", entry["doc"])

    def get(self: Any) -> Any:
        if f"_{name}" in self.__dict__:
            return self.__dict__[f"_{name}"]
        if scripted := script.get(f"{owner}.{name}"):
            return scripted(self)
        return _default(returned[1] if returned else "None", module)

    def put(self: Any, value: Any) -> None:
        module.calls.append((f"{owner}.{name}=", (value,), {}))
        self.__dict__[f"_{name}"] = value

    return property(get, put if entry["settable"] else None)


def _default(returned: str, module: Any) -> Any:
    simple = {"bool": True, "int": 0, "str": "", "float": 0.0}
    name = returned.rpartition(".")[2]
    if returned in simple:
        return simple[returned]
    made = getattr(module, name, None)
    return made.__new__(made) if isinstance(made, type) and not issubclass(made, enum.Enum) else None
