"""vitedge: Vision Transformers on edge boards, compressed, compiled and measured.

    run = vitedge.compress("vit_b_16", calib="images/", prune=0.3, quantize="static", run="my-run")
    run.build("onnxruntime", precision="int8")
    run.bench("val/")
    vitedge.open("my-run").report()

One level below, the steps over a model in memory: `load`, `prune`, `condition`, `quantize`, `export`, `fine_tune`,
`distill`. Every keyword is a flag of the command line with the same name and default; errors are `VitedgeError`.
Importing this package imports neither torch nor any vendor's library.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitedge.api import Artifact, Run, bench_pack, check_pack, compress, inspect, open, profile, search
    from vitedge.bench.result import BenchResult
    from vitedge.errors import VitedgeError
    from vitedge.loaded import Model, condition, distill, export, fine_tune, images, load, prune, quantize
    from vitedge.reporter import Reporter

__version__ = "0.2.0"

__all__ = [
    "Artifact",
    "BenchResult",
    "Model",
    "Reporter",
    "Run",
    "VitedgeError",
    "bench_pack",
    "check_pack",
    "compress",
    "condition",
    "distill",
    "export",
    "fine_tune",
    "images",
    "inspect",
    "load",
    "open",
    "profile",
    "prune",
    "quantize",
    "search",
]
# Public name -> module that has it, where it is not `vitedge.api`.
_ELSEWHERE = dict.fromkeys(("Model", "condition", "distill", "export", "fine_tune"), "vitedge.loaded")
_ELSEWHERE |= dict.fromkeys(("images", "load", "prune", "quantize"), "vitedge.loaded")
_ELSEWHERE |= {"VitedgeError": "vitedge.errors", "Reporter": "vitedge.reporter"}
_ELSEWHERE |= {"BenchResult": "vitedge.bench.result"}


class _Package(ModuleType):
    """Loads public names when they are asked for. Some of them are packages too (`vitedge.prune`): importing one sets
    it as an attribute here, which must not hide the function; `from vitedge.prune import ...` finds it all the same.
    """

    def __getattr__(self, name: str) -> Any:
        if name in __all__:
            value = getattr(importlib.import_module(_ELSEWHERE.get(name, "vitedge.api")), name)
            super().__setattr__(name, value)
            return value
        raise AttributeError(f"module 'vitedge' has no attribute '{name}'")

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
