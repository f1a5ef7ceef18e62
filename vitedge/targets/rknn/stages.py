"""What the RKNN compiler is at, read from the end of its log while it works."""

from __future__ import annotations

import re

TAIL = 2**16  # bytes of the log that are read
_WORDS = {
    "selftest": "building a small model",
    "build_float": "compiling the model in float16",
    "quantize": "finding the ranges of INT8 on the calibration images",
    "assemble": "compiling the quantised model",
    "infer": "computing images in the simulator",
    "export": "writing the .rknn",
}
# "I GraphPreparing :  45%|####", "D fuse_ops ...", "I rknn building ...".
_BAR = re.compile(r"^I (\w+) *: *(\d+)%", re.MULTILINE)
_STEP = re.compile(r"^[DI] +((?:\w+ )?\w+) \.\.\.\s*$", re.MULTILINE)


def doing(op: str, log: str) -> str:
    """Words for the request `op`, with the stage that `log`, its end, names last; "" where nothing is known."""
    words = _WORDS.get(op, "")
    log = log.replace("\r", "\n")
    found = [(m.start(), f"{m[1]} {m[2]} %") for m in _BAR.finditer(log)]
    found += [(m.start(), m[1]) for m in _STEP.finditer(log)]
    return f"{words} ({max(found)[1]})" if words and found else words
