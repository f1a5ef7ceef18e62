"""What labels mean: texts and folder names, matched to the classes of a model."""

from __future__ import annotations

import importlib.util
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from vitedge import documents
from vitedge.errors import VitedgeError

_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")
_SYNSET = re.compile(r"n[0-9]{8}")
_PLACEHOLDER = re.compile(r"(?i)label_[0-9]+")
_SYNSET_LISTS = ("LOC_synset_mapping.txt", "synset_words.txt", "words.txt", "classes.txt")
TODO = "Write one class name a line, in the order of the model's outputs."
SEVERAL, NEITHER = "the name of several classes", "neither an integer nor a class name"


def read_classes(path: str | Path) -> tuple[str, ...]:
    """Class names, one a line; empty lines at the end are none.

    Raises VitedgeError where the file is unreadable, empty or has empty lines between names.
    """
    try:
        lines = documents.read_text(path, todo=TODO).rstrip().splitlines()
    except VitedgeError as error:
        raise VitedgeError(f"{path} could not be read.", error.why, TODO) from error
    names = tuple(line.strip() for line in lines)
    if empty := [number for number, name in enumerate(names, 1) if not name]:
        raise VitedgeError(f"{path} has an empty line.", f"It is line {empty[0]}.", TODO)
    if not names:
        raise VitedgeError(f"{path} is empty.", "", TODO)
    return names


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sorts class2 before class10, as timm does (torchvision's ImageFolder sorts as text)."""
    parts = re.split(r"([0-9]+)", text.lower())
    return [(0, int(part), "") if number % 2 else (1, 0, part) for number, part in enumerate(parts)]


def named(classes: Sequence[str] | None) -> tuple[str, ...] | None:
    """`classes`, or None where they are placeholders (Hugging Face's LABEL_0, LABEL_1, ...) that say nothing."""
    return None if classes is None or all(map(_PLACEHOLDER.fullmatch, classes)) else tuple(classes)


def some(names: Iterable[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    listed = [documents.printable(name, 80) for name in names]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def repeated(names: Sequence[str]) -> list[str]:
    """The names of more than one class, each with the indices: "crane (134, 517)"."""
    at: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        at[name].append(index)
    return [f"{name} ({', '.join(map(str, found))})" for name, found in at.items() if len(found) > 1]


class Names:
    """The classes that a text may mean: by name, by name in another spelling, by one of its synonyms.

    ImageNet's names list synonyms ("tench, Tinca tinca"); a WordNet id stands for the synset that a list beside the
    data, or timm's, gives it.
    """

    def __init__(self, classes: Sequence[str], near: Path | None = None) -> None:
        self.classes, self.synsets = classes, _synset_names(near)
        self.levels: list[dict[str, set[int]]] = [defaultdict(set) for _ in range(3)]
        for index, name in enumerate(classes):
            self.levels[0][name].add(index)
            self.levels[1][_fold(name)].add(index)
            first, _, rest = name.partition(" ")
            for synonym in (*name.split(","), first, rest) if _SYNSET.fullmatch(first) else name.split(","):
                self.levels[2][_fold(synonym)].add(index)

    def __call__(self, text: str) -> int | str:
        """The index that `text` means, or why it means none."""
        for level, key in zip(self.levels, (text, _fold(text), _fold(text)), strict=True):
            if found := level.get(key):
                return next(iter(found)) if len(found) == 1 else SEVERAL
        if text in self.synsets:
            return self._synset(text)
        return NEITHER

    def _synset(self, text: str) -> int | str:
        lemma = self.synsets[text]
        if len(self.synsets) == len(self.classes):
            # ImageNet's classes are its WordNet ids in their order: two of them are called "crane".
            index = sorted(self.synsets).index(text)
            if {_fold(s) for s in lemma.split(",")} & {_fold(s) for s in self.classes[index].split(",")}:
                return index
        indices = {i for s in (lemma, *lemma.split(",")) for i in self.levels[2].get(_fold(s), ())}
        return indices.pop() if len(indices) == 1 else SEVERAL if indices else NEITHER


def class_indices(
    texts: Iterable[str], classes: Sequence[str] | None, count: int | None, near: Path | None = None
) -> tuple[dict[str, int | str], list[str]]:
    """What each label means: a class index from 0, or why none; and what should be said of how they were read.

    A label that is a class name is that class, be it "1". Other numbers are indices from 0, or from 1 where they go
    from 1 to the number of classes.

    Args:
        near: the folder of the data set, beside which a list of WordNet ids may lie.
    """
    labels = list(dict.fromkeys(texts))
    known = named(classes)
    synsets = _synset_names(near) if known is None and labels and all(map(_SYNSET.fullmatch, labels)) else {}
    if synsets and len(synsets) == count:
        known = tuple(sorted(synsets))
    names = None if known is None else Names(known, near)
    unknown = "not an integer, and no class names are known"
    found: dict[str, int | str] = {text: names(text) if names else unknown for text in labels}
    digits = [t for t in labels if _NUMBER.fullmatch(t)]
    if not digits:
        return found, []
    if all(isinstance(found[t], int) for t in digits):
        other = [t for t in digits if int(t) != found[t]]
        return found, [f"the labels {some(other)} are read as class names, not as indices"] if other else []
    said = []
    numbers = {t: int(t) for t in digits}
    low, high = min(numbers.values()), max(numbers.values())
    first = 1 if count is not None and count > 1 and low == 1 and high == count else 0
    if first:
        said.append(f"the labels go from 1 to {high}, and there are {count} classes: they are counted from 1")
    elif low == 1 and high > 1 and len(set(numbers.values())) == high:
        said.append(f"no label is 0: the labels 1 to {high} are read as indices that are counted from 0")
    elif any(isinstance(found[t], int) for t in digits):
        odd = next(t for t in digits if not isinstance(found[t], int))
        said.append(f"the labels are read as indices, although some are class names: '{odd}' is none")
    for text, number in numbers.items():
        index = number - first
        found[text] = index if index >= 0 and (count is None or index < count) else "out of range"
    return found, said


def mismatch(
    source: object, theirs: Sequence[str], wrong: Sequence[str], classes: Sequence[str], kind: str
) -> VitedgeError:
    """The error for a data set whose classes are not the model's: it shows both."""
    return VitedgeError(
        f"{source} has classes that are not among the known ones.",
        f"There are {len(theirs)} {kind} and {len(classes)} classes; not among the class names: {some(wrong)}. "
        f"{kind[:1].upper()}{kind[1:]}: {some(theirs)}. Known classes: {some(classes)}.",
        "Give a data set of these classes, or name them alike (--classes FILE corrects the model's names).",
    )


def _fold(text: str) -> str:
    return " ".join(re.split(r"[\s_-]+", text.strip().casefold())).strip()


def _synset_names(near: Path | None) -> dict[str, str]:
    """WordNet id -> names: of a list beside the data, else ImageNet-1k's as timm ships them (read, not imported)."""
    for folder in () if near is None else (near, near.parent):
        for name in _SYNSET_LISTS:
            if (folder / name).is_file() and (found := _synset_list(folder / name)):
                return found
    return _timm_synsets()


@cache
def _timm_synsets() -> dict[str, str]:
    spec = importlib.util.find_spec("timm")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        info = Path(root, "data", "_info")
        order, lemmas = info / "imagenet_synsets.txt", info / "imagenet_synset_to_lemma.txt"
        if order.is_file() and lemmas.is_file():
            names = _synset_list(lemmas)
            return {line: names[line] for line in order.read_text().split() if line in names}
    return {}


def _synset_list(path: Path) -> dict[str, str]:
    lines = documents.read_bytes(path).decode("utf-8", "replace").splitlines()
    pairs = [re.split(r"[\s,]+", line.strip(), maxsplit=1) for line in lines]
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and _SYNSET.fullmatch(pair[0])}
