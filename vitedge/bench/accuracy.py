"""Accuracy figures from the records of a run (see `vitedge.bench.records`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from vitedge.bench import stats
from vitedge.metrics import finite, sqnr_of


def figures(records: np.ndarray, baseline: np.ndarray | None = None) -> dict[str, Any]:
    """The bench JSON's accuracy keys of one row; what can't be told from the records is None.

    Args:
        records: of the row, [n].
        baseline: the reference's own records on the same images in the same order, or None.

    Raises:
        ValueError: the two are not of the same images.
    """
    out: dict[str, Any] = dict.fromkeys(KEYS)
    if records.size == 0:
        return out
    out["not_finite"] = int((~records["finite"]).sum())
    labelled = records[records["label"] >= 0]
    if labelled.size:
        top1, top5, n = (
            int((labelled["rank"] == 0).sum()),
            int((labelled["rank"] < 5).sum()),
            int(labelled.size),
        )
        out |= {"top1": top1 / n, "top1_ci95": list(stats.wilson(top1, n))}
        out |= {
            "top5": top5 / n,
            "top5_ci95": list(stats.wilson(top5, n)),
            "ece": calibration_error(labelled),
        }
    if (records["reference"] >= 0).all():
        agreement = int((records["pred"] == records["reference"]).sum())
        out["agreement"] = agreement / records.size
        out["agreement_ci95"] = list(stats.wilson(agreement, records.size))
        out["sqnr_db"] = finite(sqnr_of(float(records["signal"].sum()), float(records["noise"].sum())))
        out["kl"] = float(records["kl"].astype(np.float64).mean())
    if baseline is not None and labelled.size:
        if not np.array_equal(baseline["index"], records["index"]):
            raise ValueError("the baseline's records are not of the same images")
        known = records["label"] >= 0
        found = stats.paired_difference(records["rank"][known] == 0, baseline["rank"][known] == 0)
        out |= {"delta_top1": found.delta, "delta_ci95": [found.low, found.high], "mcnemar_p": found.p_value}
        out |= {"won": found.only_a, "lost": found.only_b}
    return out


KEYS: tuple[str, ...] = (
    "top1",
    "top5",
    "top1_ci95",
    "top5_ci95",
    "ece",
    "delta_top1",
    "delta_ci95",
    "mcnemar_p",
    "won",
    "lost",
)
KEYS += ("agreement", "agreement_ci95", "sqnr_db", "kl", "not_finite")


def calibration_error(labelled: np.ndarray, bins: int = 15) -> float:
    """The expected calibration error (Guo et al., "On Calibration of Modern Neural Networks", 2017): the mean
    gap between confidence and accuracy over equal bins of confidence, weighted by the images in each."""
    edges = np.linspace(0, 1, bins + 1)
    bin_of = np.clip(np.searchsorted(edges, labelled["confidence"], side="left") - 1, 0, bins - 1)
    hits = (labelled["rank"] == 0).astype(np.float64)
    gap = np.bincount(bin_of, hits - labelled["confidence"].astype(np.float64), bins)
    return float(np.abs(gap).sum() / labelled.size)


def per_class(records: np.ndarray, names: list[str] | None = None) -> list[dict[str, Any]]:
    """One row a class that occurs: {"class", "name", "n", "top1", "top1_ci95"}, the worst first."""
    labelled = records[records["label"] >= 0]
    out = []
    for label in np.unique(labelled["label"]):
        ranks = labelled["rank"][labelled["label"] == label]
        n, hits = int(ranks.size), int((ranks == 0).sum())
        name = names[label] if names and label < len(names) else str(label)
        row = {"class": int(label), "name": name, "n": n, "top1": hits / n}
        out.append(row | {"top1_ci95": list(stats.wilson(hits, n))})
    return sorted(out, key=lambda row: (row["top1"], -row["n"]))


def mean_average_precision(scores: np.ndarray, targets: np.ndarray) -> float | None:
    """mAP of a multi-label model: the mean over classes of the area under precision over recall.

    Args:
        scores: [n, classes], any increasing function of the probability (logits do).
        targets: bool [n, classes].

    Returns:
        The mean over the classes that have a positive image; None where no class has one. The same as
        scikit-learn's `average_precision_score(..., average="macro")` on those classes.
    """
    found = [_average_precision(scores[:, c], targets[:, c]) for c in range(scores.shape[1]) if targets[:, c].any()]
    return float(np.mean(found)) if found else None


def _average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(targets[order].astype(np.float64))
    # Images of equal score can't be told apart: they enter together.
    ends = np.append(np.flatnonzero(np.diff(ranked)), ranked.size - 1)
    precision, recall = hits[ends] / (ends + 1), hits[ends] / hits[-1]
    return float((np.diff(recall, prepend=0.0) * precision).sum())
