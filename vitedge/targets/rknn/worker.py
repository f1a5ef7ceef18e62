"""Runs in the vendor's environment and imports nothing of vitedge: requests in as JSON lines, answers out the same.

    python worker.py LOG PARENT

Each line on stdin is a request `{"op": ...}`; each answer is one line on stdout: `{"ok": true, ...}`, or
`{"ok": false, "stage": ..., "error": ...}`. The toolkit writes to stdout and stderr from Python and from C++, so
both are sent to the file LOG before it is imported. It also writes `check*.onnx` and others into the current folder:
the caller starts it in a temporary one. It keeps the model of the last build, so that a simulator can be asked many
times. Written for Python 3.8, the oldest that the vendor has wheels for.
"""

import ctypes
import json
import os
import shutil
import sys
import traceback
from typing import Any

import numpy as np


class Failed(Exception):
    """A call of the toolkit that returned an error code: it logs why, and raises nothing."""


def call(stage, function, *args, **kwargs):
    """The function's result; the toolkit tells of an error by a return of -1 (or None)."""
    result = function(*args, **kwargs)
    if result not in (0, None):
        raise Failed(f"{stage} returned {result}")
    return result


class Session:
    """One RKNN object and what was built with it."""

    def __init__(self):
        self.rknn: Any = None
        self.base = ""

    def fresh(self, request=None):
        from rknn.api import RKNN

        if self.rknn is not None:
            self.rknn.release()
        self.rknn = RKNN(verbose=True)
        if request is not None:
            channels = request["channels"]
            settings = {"mean_values": [[0] * channels], "std_values": [[1] * channels]}
            settings["target_platform"] = request["platform"]
            settings.update(request.get("config", {}))
            call("config", self.rknn.config, **settings)
        return self.rknn

    def versions(self, request):
        from importlib.metadata import version

        from rknn.api import RKNN  # noqa: F401  the check is that this works

        return {"toolkit": version("rknn-toolkit2"), "python": sys.version.split()[0]}

    def selftest(self, request):
        """Builds a convolution for the RK3588: the toolkit's libraries are there and work."""
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        weight = numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "w")
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 6, 6])
        graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "g", [x], [y], [weight])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8)
        onnx.save(model, "selftest.onnx")
        self.build_float({"onnx": "selftest.onnx", "platform": "rk3588", "channels": 3})
        return self.versions(request)

    def build_float(self, request):
        """The model in float16; kept for `infer` and `export`."""
        rknn = self.fresh(request)
        call("load_onnx", rknn.load_onnx, request["onnx"])
        call("build", rknn.build, do_quantization=False)
        return {}

    def quantize(self, request):
        """Step 1 of the hybrid quantisation: the ranges of all tensors on the data set; returns its tensors."""
        rknn = self.fresh(request)
        call("load_onnx", rknn.load_onnx, request["onnx"])
        call("hybrid_quantization_step1", rknn.hybrid_quantization_step1, request["dataset"])
        self.base = os.path.splitext(os.path.basename(request["onnx"]))[0]
        rknn.release()
        self.rknn = None
        return {"base": self.base, "tensors": self.ranges()}

    def ranges(self):
        tensors = {}
        for name, entry in self.yaml(f"{self.base}.quantization.cfg")["quantize_parameters"].items():
            if entry.get("min") and entry.get("max"):
                tensors[name] = [min(map(float, entry["min"])), max(map(float, entry["max"]))]
        return tensors

    def yaml(self, path):
        from ruamel.yaml import YAML

        with open(path) as file:
            return YAML(typ="safe").load(file)

    def assemble(self, request):
        """Step 2: the model with the tensors `float16` in that type."""
        from ruamel.yaml import YAML

        base = request.get("base", self.base)
        config = self.yaml(request.get("cfg", f"{base}.quantization.cfg"))
        if "float16" in request:
            config["custom_quantize_layers"] = dict.fromkeys(request["float16"], "float16")
        path = f"{os.path.basename(base)}.assembled.cfg"
        with open(path, "w") as file:
            YAML().dump(config, file)
        rknn = self.fresh()
        call("hybrid_quantization_step2", rknn.hybrid_quantization_step2, f"{base}.model", f"{base}.data", path)
        return {"cfg": path}

    def export(self, request):
        call("export_rknn", self.rknn.export_rknn, request["path"])
        return {}

    def infer(self, request):
        """The simulator on uint8 [N, H, W, C] from an .npy file; logits into another."""
        call("init_runtime", self.rknn.init_runtime)
        logits = []
        for pixels in np.load(request["pixels"], mmap_mode="r"):
            result = self.rknn.inference([np.ascontiguousarray(pixels[None])], data_format="nhwc")
            if result is None:
                raise Failed("inference returned nothing")
            logits.append(np.asarray(result[0], np.float32).reshape(1, -1))
        np.save(request["logits"], np.concatenate(logits))
        return {}

    def outputs(self, request):
        """All outputs of the simulator, each float32 [N, ...] in a file of `folder`: 0.npy, 1.npy, ..."""
        call("init_runtime", self.rknn.init_runtime)
        images = [
            self.rknn.inference([np.ascontiguousarray(pixels[None])], data_format="nhwc")
            for pixels in np.load(request["pixels"], mmap_mode="r")
        ]
        if any(result is None for result in images):
            raise Failed("inference returned nothing")
        for number in range(len(images[0])):
            values = np.stack([np.asarray(parts[number], np.float32) for parts in images])
            np.save(os.path.join(request["folder"], f"{number}.npy"), values)
        return {"count": len(images[0])}


def die_with(parent):
    """Linux kills this process when its parent is gone, also where the toolkit hangs."""
    try:
        ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL
    except (OSError, AttributeError):
        return
    if os.getppid() == 1 != parent:
        os._exit(1)


def main():
    die_with(int(sys.argv[2]))
    answers = os.fdopen(os.dup(1), "w")
    log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    session = Session()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = dict(getattr(session, request["op"])(request), ok=True)
        except Exception as error:  # whatever the toolkit raises is for the caller to tell
            traceback.print_exc()
            kind = "" if isinstance(error, Failed) else f"{type(error).__name__}: "
            answer = {"ok": False, "stage": request["op"], "error": f"{kind}{error}"}
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
        except BrokenPipeError:
            break
    # The caller ended without stopping this process, so nobody else cleans up.
    if os.path.basename(os.getcwd()).startswith(".vitedge-rknn."):
        shutil.rmtree(os.getcwd(), ignore_errors=True)


if __name__ == "__main__":
    main()
