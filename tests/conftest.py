"""Fixtures and small helpers for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The really trained ViT-Ti/16 and its photographs: VITEDGE_SHARED_DATA or ../shared/data."""
    folder = Path(os.environ.get("VITEDGE_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "val" / "labels.csv").is_file():
        pytest.skip(f"no test data at {folder}: set VITEDGE_SHARED_DATA to the folder with val/ and calib/")
    return folder


@pytest.fixture
def unwritable(tmp_path: Path) -> Path:
    """A folder in which no file can be made: root, whom permissions don't stop, gets Linux's /sys."""
    folder = tmp_path / "unwritable"
    folder.mkdir()
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):
        folder = Path("/sys")
    if not folder.is_dir():
        pytest.skip("this user writes to every folder")
    return folder


@pytest.fixture
def full_disk() -> Path:
    """A device that refuses every write with ENOSPC."""
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("no /dev/full on this system")
    return device
