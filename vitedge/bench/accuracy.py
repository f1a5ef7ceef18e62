"""Accuracy figures from the records of a run (see `vitedge.bench.records`)."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vitedge.bench import stats
from vitedge.bench.stats import Interval
from vitedge.metrics import directions, finite, sqnr_of


@dataclass(frozen=True)
class Accuracy:
    """The accuracy figures of a row; None is what can't be told.

    Attributes:
        top1_ci95, top5_ci95, agreement_ci95: Wilson's intervals; delta_ci95: of the paired difference.
        ece: expected calibration error.
        delta_top1, won, lost, mcnemar_p: against the reference on the same images.
        agreement, sqnr_db, kl_nats: of the logits, against the reference; SQNR None where they are equal.
        map, delta_map: mean average precision of a multi-label model.
        f1, exact_match: its micro F1, and the share of images with all labels right, at probability 0.5.
        cosine_mean, cosine_worst: of embeddings to the reference's; of the worst 1 % of the images the best. Their
            agreement is recall@1: the share of images with the same nearest other one.
        recall_at_5: share of images whose nearest other one, by the reference, is among their five nearest.
        overlap_at_5: how many of the five nearest are those of the reference, as a share.
        knn_top1: share of images whose nearest other one has their label.
        probe_top1: accuracy of a linear probe that was fitted to the reference's embeddings of other images.
            With embeddings of class names, `top1` and what belongs to it are zero-shot.
        not_finite: images with a logit that is no number.
    """

    top1: float | None = None
    top1_ci95: Interval | None = None
    top5: float | None = None
    top5_ci95: Interval | None = None
    ece: float | None = None
    delta_top1: float | None = None
    delta_ci95: Interval | None = None
    mcnemar_p: float | None = None
    won: int | None = None
    lost: int | None = None
    agreement: float | None = None
    agreement_ci95: Interval | None = None
    sqnr_db: float | None = None
    kl_nats: float | None = None
    not_finite: int | None = None
    map: float | None = None
    delta_map: float | None = None
    f1: float | None = None
    exact_match: float | None = None
    cosine_mean: float | None = None
    cosine_worst: float | None = None
    recall_at_5: float | None = None
    overlap_at_5: float | None = None
    knn_top1: float | None = None
    probe_top1: float | None = None


def figures(records: np.ndarray, baseline: np.ndarray | None = None) -> Accuracy:
    """The figures that the records of a row tell.

    Args:
        records: of the row, [n].
        baseline: the reference's own records on the same images in the same order, or None.

    Raises:
        ValueError: the two are not of the same images.
    """
    if records.size == 0:
        return Accuracy()
    out = Accuracy(not_finite=int((~records["finite"]).sum()))
    known = records["label"] >= 0
    if known.any():
        labelled = records[known]
        top1, top5, n = int((labelled["rank"] == 0).sum()), int((labelled["rank"] < 5).sum()), int(labelled.size)
        out = replace(out, top1=top1 / n, top1_ci95=stats.wilson(top1, n), ece=calibration_error(labelled))
        out = replace(out, top5=top5 / n, top5_ci95=stats.wilson(top5, n))
    if (records["reference"] >= 0).all():
        same, n = int(records["same"].sum()), int(records.size)
        out = replace(
            out,
            agreement=same / n,
            agreement_ci95=stats.wilson(same, n),
            sqnr_db=finite(sqnr_of(float(records["signal"].sum()), float(records["noise"].sum()))),
            kl_nats=max(0.0, float(records["kl"].astype(np.float64).mean())),
        )
    if baseline is not None and known.any():
        if not np.array_equal(baseline["index"], records["index"]):
            raise ValueError("the baseline's records are not of the same images")
        found = stats.paired_difference(records["rank"][known] == 0, baseline["rank"][known] == 0)
        out = replace(out, delta_top1=found.delta, delta_ci95=(found.low, found.high), mcnemar_p=found.p_value)
        out = replace(out, won=found.only_a, lost=found.only_b)
    return out


def on_same_images(records: np.ndarray, other: np.ndarray) -> np.ndarray | None:
    """The records of `other` of the very images of `records`, in their order; None where one is missing."""
    found = np.searchsorted(other["index"], records["index"])
    if records.size == 0 or found[-1] >= other.size or not np.array_equal(other["index"][found], records["index"]):
        return None
    return np.asarray(other[found])


@dataclass(frozen=True)
class ByImage:
    """What each image was, so that two results of the same images can be compared in pairs without their records.

    Attributes:
        n: images; images_sha256: of their numbers in the data set.
        right: bit by bit whether an image's class (of several labels: all) is right, base64; None without labels.
        agrees: likewise whether it is the reference's; None without a reference.
    """

    n: int
    images_sha256: str
    right: str | None = None
    agrees: str | None = None

    def bits(self, which: Literal["right", "agrees"]) -> np.ndarray | None:
        """bool [n], or None where it is not known or damaged."""
        text = getattr(self, which)
        data = np.frombuffer(base64.b64decode(text or ""), np.uint8)
        return np.unpackbits(data, count=self.n).astype(bool) if data.size == (self.n + 7) // 8 and text else None


def by_image(records: np.ndarray, right: np.ndarray | None = None) -> ByImage:
    """Of the records; `right` bool [n] where several labels decide."""
    if right is None and records.size and (records["label"] >= 0).all():
        right = records["rank"] == 0
    agrees = records["same"] if records.size and (records["reference"] >= 0).all() else None
    digest = hashlib.sha256(np.ascontiguousarray(records["index"]).tobytes()).hexdigest()
    return ByImage(records.size, digest, *(None if one is None else _packed(one) for one in (right, agrees)))


def _packed(bits: np.ndarray) -> str:
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def calibration_error(labelled: np.ndarray, bins: int = 15) -> float:
    """The expected calibration error (Guo et al., "On Calibration of Modern Neural Networks", 2017): the mean
    gap between confidence and accuracy over equal bins of confidence, weighted by the images in each."""
    edges = np.linspace(0, 1, bins + 1)
    bin_of = np.clip(np.searchsorted(edges, labelled["confidence"], side="left") - 1, 0, bins - 1)
    hits = (labelled["rank"] == 0).astype(np.float64)
    gap = np.bincount(bin_of, hits - labelled["confidence"].astype(np.float64), bins)
    return float(np.abs(gap).sum() / labelled.size)


@dataclass(frozen=True)
class ClassFigures:
    """One class: its images, how many are right, and what the wrong ones are taken for most often."""

    label: int
    n: int
    top1: float
    top1_ci95: Interval
    taken_for: int | None
    times: int


def per_class(records: np.ndarray) -> list[ClassFigures]:
    """One entry a class that occurs, the worst first."""
    labelled = records[records["label"] >= 0]
    out = []
    for label in np.unique(labelled["label"]):
        own = labelled[labelled["label"] == label]
        hits = int((own["rank"] == 0).sum())
        wrong, counts = np.unique(own["pred"][own["pred"] != label], return_counts=True)
        most = (int(wrong[counts.argmax()]), int(counts.max())) if wrong.size else (None, 0)
        out.append(ClassFigures(int(label), own.size, hits / own.size, stats.wilson(hits, own.size), *most))
    return sorted(out, key=lambda one: (one.top1, -one.n))


def confusion(records: np.ndarray) -> np.ndarray:
    """How often each class [row] was taken for each [column], int [C, C]; C is one more than the largest number."""
    labelled = records[records["label"] >= 0]
    if not labelled.size:
        return np.zeros((0, 0), np.int64)
    size = int(max(labelled["label"].max(), labelled["pred"].max())) + 1
    pairs = labelled["label"].astype(np.int64) * size + labelled["pred"]
    return np.bincount(pairs, minlength=size**2).reshape(size, size)


# Each image's nearest other one is looked for among so many at most: their similarities are a square.
MOST_NEAREST = 4000


def multi_label(scores: np.ndarray, targets: np.ndarray) -> Accuracy:
    """mAP, micro F1 and exact matches of logits [n, classes] against bool [n, classes], at probability 0.5."""
    said = scores > 0
    hits, n = int((said & targets).sum()), int(said.sum() + targets.sum())
    f1 = 2 * hits / n if n else None
    right = (said == targets).all(1)
    return Accuracy(map=mean_average_precision(scores, targets), f1=f1, exact_match=float(right.mean()))


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


# Nearest images that are looked at, and rows of the similarity that are computed at once.
NEIGHBOURS, _CHUNK = 5, 512


def judge_embeddings(records: np.ndarray, reference: np.ndarray | None, embeddings: np.ndarray) -> np.ndarray:
    """The records [n] of a model that gives embeddings [n, C]: `same` says whether the reference's have the same
    nearest image (recall@1), which needs all images at once; without a reference, or of more than `MOST_NEAREST`
    images, the records say nothing of agreement."""
    out: np.ndarray = records.copy()
    if reference is None or not 1 < len(records) <= MOST_NEAREST:
        out["reference"] = -1
    else:
        out["same"] = neighbours(reference)[:, 0] == neighbours(embeddings)[:, 0]
    return out


def embedded(
    records: np.ndarray, embeddings: np.ndarray, labels: np.ndarray | None, reference: np.ndarray | None = None
) -> Accuracy:
    """What users of embeddings [n, C] feel: cosine to the reference's, the mean and that of the worst 1 % of the images
    (the best of these); how far the nearest images are the reference's own; with labels [n] the share of images whose
    nearest other one has their label, and the accuracy of a linear probe."""
    out = Accuracy()
    if records.size and (records["reference"] >= 0).all():
        cosine = np.sort(1 - records["kl"].astype(np.float64))
        worst = cosine[: max(1, len(cosine) // 100)]
        out = replace(out, cosine_mean=float(cosine.mean()), cosine_worst=float(worst.max()))
    near = neighbours(embeddings) if 1 < len(embeddings) <= MOST_NEAREST else None
    if near is not None and reference is not None:
        theirs = neighbours(reference)
        recalled, shared = near == theirs[:, :1], near[:, :, None] == theirs[:, None]
        out = replace(out, recall_at_5=float(recalled.any(1).mean()), overlap_at_5=float(shared.any(2).mean()))
    if labels is not None and near is not None:
        known = labels >= 0
        hits = labels[near[:, 0]] == labels
        nearest = float(hits[known].mean()) if known.any() else None
        own = None if reference is None else reference[known]
        out = replace(out, knn_top1=nearest, probe_top1=linear_probe(embeddings[known], labels[known], own))
    return out


_FOLDS, _RIDGE = 5, 1e-2


def linear_probe(embeddings: np.ndarray, labels: np.ndarray, reference: np.ndarray | None = None) -> float | None:
    """Top-1 of a linear classifier of the labels [n]: ridge regression in closed form, fitted to four fifths of the
    `reference`'s embeddings (as users who fitted one to the model before compression have it; by default to the
    embeddings themselves) and judged on the others' [n, C], in turns. None with fewer than two images a class."""
    classes, targets = np.unique(labels, return_inverse=True)
    if len(classes) < 2 or len(labels) < 2 * len(classes):
        return None
    own = directions(embeddings)
    fitted = own if reference is None else directions(reference)
    folds = np.empty(len(labels), np.int64)
    for number in range(len(classes)):  # each class its share of every fold
        members = np.flatnonzero(targets == number)
        folds[members] = np.arange(len(members)) % _FOLDS
    hits = 0
    for fold in range(_FOLDS):
        train, test = folds != fold, folds == fold
        if not test.any():
            continue
        mean = fitted[train].mean(0)
        x, onehot = fitted[train] - mean, np.eye(len(classes))[targets[train]]
        share = onehot.mean(0)
        energy = x.T @ x
        energy[np.diag_indices_from(energy)] += _RIDGE * np.trace(energy) / len(energy) + 1e-12
        weight = np.linalg.solve(energy, x.T @ (onehot - share))
        hits += int((((own[test] - mean) @ weight + share).argmax(1) == targets[test]).sum())
    return hits / len(labels)


def zero_shot(
    records: np.ndarray, logits: np.ndarray, labels: np.ndarray, reference: np.ndarray | None
) -> tuple[dict[str, float | Interval | None], ByImage]:
    """The figures of classes that are named by text, as keyword arguments of a row: top-1, top-5 and the paired
    difference of logits [n, names] against labels [n], and the images one by one.

    reference: the reference's logits; None for the reference itself. What is not of classes (agreement, SQNR) is left
    as it is: it is of the embeddings.
    """
    from vitedge.bench.records import make

    made = make(records["index"], logits, labels)
    before = None if reference is None else make(records["index"], reference, labels)
    found = vars(figures(made, before))
    names = ("top1", "top1_ci95", "top5", "top5_ci95", "ece", "delta_top1", "delta_ci95", "mcnemar_p", "won", "lost")
    return {name: found[name] for name in names}, by_image(made)


def neighbours(embeddings: np.ndarray) -> np.ndarray:
    """int [n, 5]: the nearest other images of each by cosine, the nearest first; fewer where there are fewer images."""
    x = directions(embeddings)
    count, found = min(NEIGHBOURS, len(x) - 1), []
    for start in range(0, len(x), _CHUNK):
        similarity = x[start : start + _CHUNK] @ x.T
        own = np.arange(len(similarity))
        similarity[own, start + own] = -np.inf
        found.append(similarity.argsort(1, kind="stable")[:, ::-1][:, : max(count, 1)])
    return np.concatenate(found)
