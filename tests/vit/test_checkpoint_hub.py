"""hf:ORG/NAME and timm:NAME: what is asked of the Hub's library, and what is said where it can't answer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vitedge.errors import VitedgeError
from vitedge.vit.checkpoint import load_model

hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def asked(monkeypatch, tmp_path, tiny_folder) -> list[tuple[str, str | None, list[str]]]:
    """What is asked for; the Hub has the tiny model as pickled weights only, as old repositories do."""
    seen: list[tuple[str, str | None, list[str]]] = []

    def snapshot(repository: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: object) -> str:
        seen.append((repository, revision, allow_patterns))
        folder = tmp_path / "cache"
        folder.mkdir(exist_ok=True)
        for file in Path(tiny_folder).iterdir():
            if file.suffix != ".safetensors" or "*.bin" in allow_patterns:
                shutil.copy(file, folder / file.name)
        if "*.bin" in allow_patterns:
            (folder / "pytorch_model.bin").write_bytes(b"")
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    return seen


def test_a_name_becomes_a_folder(asked) -> None:
    loaded = load_model("hf:somebody/tiny@v1")
    assert loaded.model.config.width == 32 and loaded.preprocess.crop == 32 and loaded.classes
    assert [(name, revision) for name, revision, _ in asked] == [("somebody/tiny", "v1")] * 2
    assert "*.safetensors" in asked[0][2] and "*.bin" in asked[1][2] and all("*.json" in one[2] for one in asked)


def test_timms_names_have_their_default_weights(asked) -> None:
    pytest.importorskip("timm")
    load_model("timm:vit_tiny_patch16_224")
    load_model("timm:vit_tiny_patch16_224.augreg_in21k")
    assert asked[0][0] == "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert asked[-1][0] == "timm/vit_tiny_patch16_224.augreg_in21k"


def test_without_a_network_it_says_how_to_pass_a_folder(monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise hub.errors.LocalEntryNotFoundError("The files are not in the cache, and the Hub is not reachable.")

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(VitedgeError, match="'google/vit-base-patch16-224' can't be had from the Hub") as caught:
        load_model("hf:google/vit-base-patch16-224")
    assert caught.value.exit_code == 1 and "not reachable" in caught.value.why
    assert "hf download google/vit-base-patch16-224 --local-dir DIR" in caught.value.todo


@pytest.mark.parametrize("name", ["hf:", "hf:tiny", "hf:a/b/c", "hf:../x", "timm:a b"])
def test_what_is_no_name_is_not_asked_for(asked, name: str) -> None:
    with pytest.raises(VitedgeError, match="no name of a model"):
        load_model(name)
    assert not asked


def test_a_missing_package_is_named(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(VitedgeError, match="needs the package 'huggingface_hub'"):
        load_model("hf:a/b")
