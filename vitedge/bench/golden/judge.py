"""Equal, near or wrong, and what went wrong: pure functions over logits and the values between blocks.

`reference` is the float model in FP32; `own` what the very artifact gave where it was built (in a simulator, or on
another CPU). All arrays are of the same few images.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from vitedge.metrics import finite, sqnr_db
from vitedge.tables import Cell, Table

Verdict = Literal["equal", "near", "wrong"]
# What a fault is called in JSON -> in words, and what to do about it.
CAUSES: dict[str, tuple[str, str]] = {
    "zeros": (
        "attention gives zeros, or the same for every token",
        "A fused attention that returns zeros is known on the RK3576 (airockchip/rknn-toolkit2#574). Build it with "
        "--attention parts, or take another version of the runtime.",
    ),
    "not_finite": (
        "values that are NaN or infinite",
        "Most likely a sum passes what float16 holds (65504). Build with --precision int8, or compress with "
        "--registers, which takes massive activations away.",
    ),
    "channels_swapped": (
        "red and blue are swapped",
        "Give the artifact RGB, as `vitedge predict` does (OpenCV reads BGR), and compile it without an order of "
        "channels of its own.",
    ),
    "normalised_twice": (
        "mean and standard deviation are applied twice",
        "The normalisation is in the graph: compile it with mean 0 and std 1, and give it raw pixels 0..255.",
    ),
    "layout": (
        "the pixels are read in another layout",
        "The artifact takes NHWC. Say so to the runtime (rknn-toolkit-lite2: data_format='nhwc').",
    ),
    "saturated": (
        "values end at a limit that the right ones pass",
        "The range was calibrated too small. Calibrate on images like these, or keep the residual stream in float "
        "(RKNN: --preset balanced).",
    ),
    "another_model": (
        "it computes another model",
        "Build the artifact again from this run, and pack it again.",
    ),
    "old_runtime": (
        "the runtime here is older than what built it",
        "Bring the runtime to the version that built the artifact, or build it with the older one.",
    ),
    "nothing": ("the same logits for every image", "Build with --block-outputs to see where images get lost."),
    "unknown": ("it computes something else", "Build with --block-outputs to find the first bad block."),
    "outputs": (
        "with the outputs of its blocks it computes right",
        "So the compiler's fusion across blocks is at fault. Take another version of it, or a lower optimisation.",
    ),
    "does_not_run": ("it does not run", "See the reason above."),
}
# SQNR in dB to FP32 that is asked for at most, and where it is not known what the artifact gave when it was built.
MOST_DB = {"fp32": 60.0, "fp16": 40.0, "bf16": 25.0, "int8": 25.0}
LEAST_DB = {"fp32": 60.0, "fp16": 30.0, "bf16": 15.0, "int8": 6.0}
# The noise may be twice what it was there: other hardware rounds otherwise.
MARGIN_DB = 3.0
# Share of the logits' range within which two machines give the same.
EQUAL = 1e-5


@dataclass(frozen=True)
class Judgement:
    """What was found of one artifact.

    Attributes:
        cause: a key of CAUSES, empty where nothing is wrong.
        where: the first place that is wrong, such as "block 3, attention"; empty where it is not known.
        sqnr_db: of the logits to FP32; None where they are equal or no numbers.
        own_sqnr_db: the same where it was built.
        difference: the largest to its own logits, or to FP32's, as a share of their range.
        agreement: share of the images with FP32's class.
    """

    verdict: Verdict
    cause: str = ""
    where: str = ""
    detail: str = ""
    sqnr_db: float | None = None
    own_sqnr_db: float | None = None
    difference: float | None = None
    agreement: float | None = None

    @property
    def words(self) -> str:
        """The finding in a sentence, without its figures."""
        if not self.cause:
            return {"equal": "as where it was built", "near": "within its noise"}.get(self.verdict, self.verdict)
        place = f"{self.where}: " if self.where else ""
        return f"{place}{CAUSES[self.cause][0]}{f' ({self.detail})' if self.detail else ''}"

    @property
    def advice(self) -> str:
        """What to do, or nothing."""
        return CAUSES[self.cause][1] if self.cause else ""


def limit_db(precision: str, own_db: float | None, ran: bool) -> float:
    """The SQNR to FP32 below which a value is wrong. own_db: where it was built (None: equal); ran: whether it ran."""
    if not ran:
        return LEAST_DB.get(precision, 6.0)
    most = MOST_DB.get(precision, 25.0)
    return most if own_db is None else min(most, own_db - MARGIN_DB)


def judge_logits(
    reference: np.ndarray,
    got: np.ndarray,
    precision: str,
    *,
    own: np.ndarray | None = None,
    faults: Mapping[str, np.ndarray] | None = None,
) -> Judgement:
    """Logits float32 [n, classes] against FP32's, and against the artifact's own where it was built.

    faults: name -> FP32's logits where that goes wrong with the input.
    """
    if got.shape != reference.shape:
        counts = [" x ".join(map(str, one.shape[1:])) for one in (got, reference)]
        return Judgement("wrong", "another_model", detail=f"{counts[0]} logits, not {counts[1]}")
    if not np.isfinite(got).all():
        return Judgement("wrong", "not_finite")
    own_db = None if own is None else finite(sqnr_db(reference, own), 2)
    near = reference if own is None else own
    difference = float(np.abs(got - near).max() / max(float(np.ptp(near)), 1e-30))
    found = sqnr_db(reference, got)
    agreement = float((reference.argmax(1) == got.argmax(1)).mean())
    judged = partial(
        Judgement, sqnr_db=finite(found, 2), own_sqnr_db=own_db, difference=difference, agreement=agreement
    )
    limit = limit_db(precision, own_db, own is not None)
    if difference <= EQUAL:
        return judged("equal")
    if found >= limit:
        return judged("near")
    matches = {name: sqnr_db(logits, got) for name, logits in (faults or {}).items()}
    best = max(matches, key=lambda name: matches[name], default="")
    if best and matches[best] >= max(found + MARGIN_DB, limit - MARGIN_DB):
        return judged("wrong", best)
    spread = np.abs(reference - reference.mean(0)).max() if len(reference) > 1 else 0.0
    if spread > 0 and np.abs(got - got.mean(0)).max() < 1e-3 * spread:
        return judged("wrong", "nothing", detail="all zeros" if not got.any() else "")
    if abs(correlation(reference, got)) < 0.2:
        return judged("wrong", "another_model", detail="its logits have nothing in common with FP32's")
    return judged("wrong", "unknown")


def first_bad(
    taps: Sequence[str],
    reference: Mapping[str, np.ndarray],
    got: Mapping[str, np.ndarray],
    limits: Mapping[str, float],
) -> tuple[str, str, str] | None:
    """(tap, cause, detail) of the first value that is wrong, or None.

    taps: names from the input to the output; reference, got: values [n, tokens, C]; limits: SQNR in dB to FP32.
    """
    for number, tap in enumerate(taps):
        right, value = reference[tap], got[tap]
        if right.size != value.size:
            return tap, "another_model", f"{value.size} values, not {right.size}"
        value = value.reshape(right.shape)
        if not np.isfinite(value).all():
            return tap, "not_finite", f"{int((~np.isfinite(value)).sum())} of {value.size} values"
        if sqnr_db(right, value) >= limits[tap]:
            continue
        if number and (share := added_share(taps[number - 1], tap, reference, got)) is not None and abs(share) < 0.1:
            return tap, "zeros", f"{100 * share:.0f} % of what it adds"
        if (end := saturation(right, value)) is not None:
            return tap, "saturated", f"at {end:.3g}, where FP32 has {right.max() if end > 0 else right.min():.3g}"
        if number == 0 and abs(correlation(right, value)) < 0.5:
            return tap, "another_model", "its embedding has little in common with FP32's"
        return tap, "unknown", f"SQNR {sqnr_db(right, value):.1f} dB, at least {limits[tap]:.1f} is asked"
    return None


def added_share(
    before: str, tap: str, reference: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray]
) -> float | None:
    """How much of what FP32 adds to the stream between two taps is added here: the regression of one on the other,
    without their means over tokens and images (an output projection's bias is there without any attention)."""
    right, value = reference[tap], got[tap].reshape(reference[tap].shape)
    start, own = reference[before], got[before].reshape(reference[before].shape)
    if right.ndim != 3 or start.ndim != 3 or start.shape[1] < right.shape[1] or start.shape[2] != right.shape[2]:
        return None
    # The last block computes the first tokens alone.
    wanted, found = (x - y[:, : right.shape[1]] for x, y in ((right, start), (value, own)))
    wanted, found = (x.astype(np.float64) - x.mean((0, 1), dtype=np.float64) for x in (wanted, found))
    energy = float((wanted * wanted).sum())
    return float((wanted * found).sum()) / energy if energy > 0 else None


def saturation(reference: np.ndarray, got: np.ndarray) -> float | None:
    """The value at which `got` is cut off while `reference` goes on, or None: three values or more that lie within
    0.1 % of the end, and the right ones a tenth beyond it."""
    for end, beyond in ((float(got.max()), float(reference.max())), (float(got.min()), float(reference.min()))):
        at = np.abs(got - end) <= 1e-3 * abs(end)
        passed = reference > end if end > 0 else reference < end
        if at.sum() >= 3 and beyond * end > 1.1 * end * end and (at & passed).sum() >= 0.9 * passed.sum():
            return end
    return None


def golden_table(found: Mapping[str, Judgement]) -> Table:
    """One row an artifact: equal, near or wrong, and by how much."""
    columns = ["artifact", "golden", "what", "SQNR to FP32 (dB)", "where it was built (dB)", "same class (%)"]
    rows: list[list[Cell]] = []
    for name, one in found.items():
        share = None if one.agreement is None else 100 * one.agreement
        rows.append([name, one.verdict, one.words, one.sqnr_db, one.own_sqnr_db, share])
    return Table("Golden references", columns, rows, decimals=dict.fromkeys(columns[3:], 1)).without_empty()


def advice(found: Mapping[str, Judgement]) -> list[str]:
    """A line for each artifact that is wrong: what, and what to do."""
    return [f"{name}: {one.words}. {one.advice}" for name, one in found.items() if one.verdict == "wrong"]


def place(tap: str) -> str:
    """A tap's name in words: "block 3, attention"."""
    match = re.fullmatch(r"block(\d+)\.residual([12])", tap)
    if match:
        return f"block {match[1]}, {'attention' if match[2] == '1' else 'MLP'}"
    return "patch embedding" if tap == "embed" else tap


def correlation(reference: np.ndarray, got: np.ndarray) -> float:
    """Pearson's, of all values, each image's mean taken off; 0 where one of them does not vary."""
    a, b = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (reference, got))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm > 0 else 0.0
