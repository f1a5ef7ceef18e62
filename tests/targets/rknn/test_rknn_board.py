"""The board's runner against rknn-toolkit-lite2's documented interface. A stand-in with the documented signatures and
returns takes the runtime's place: control flow alone, no hardware."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitedge.errors import VitedgeError
from vitedge.targets.rknn import board

METADATA = {"platform": "rk3588", "toolkit": "2.5.0", "npu_cores": "auto"}


class RKNNLite:
    """rknn-toolkit-lite2 2.3.2 to 2.5.0: signatures, defaults, returns."""

    NPU_CORE_AUTO, NPU_CORE_0, NPU_CORE_1, NPU_CORE_2, NPU_CORE_0_1, NPU_CORE_0_1_2 = 0, 1, 2, 4, 3, 7
    NPU_CORE_ALL = 0xFFFF
    made: list[RKNNLite] = []
    refuses: str = ""

    def __init__(self, verbose: bool = False, verbose_file: str | None = None) -> None:
        self.path, self.started, self.released, self.seen = "", None, False, 0
        RKNNLite.made.append(self)

    def load_rknn(self, path: str, key_path: str | None = None) -> int:
        self.path = path
        return -1 if self.refuses == "load" else 0

    def init_runtime(
        self, target: Any = None, device_id: Any = None, async_mode: bool = False, core_mask: int = NPU_CORE_AUTO
    ) -> int:
        assert target is None, "must stay None on the board"
        self.started = core_mask
        return -1 if self.refuses == "start" else 0

    def inference(
        self,
        inputs: list[np.ndarray],
        data_type: Any = None,
        data_format: Any = None,
        inputs_pass_through: Any = None,
        get_frame_id: bool = False,
        reuse_outputs: bool = False,
    ) -> list[np.ndarray] | None:
        if self.refuses == "run":
            return None
        assert len(inputs) == 1 and inputs[0].ndim == 4 and inputs[0].dtype == np.uint8
        assert data_format in (None, "nhwc", ["nhwc"])
        self.seen += 1
        return [inputs[0].astype(np.float32).mean((1, 2))]

    def get_sdk_version(self) -> str | None:
        return "API: 2.3.2"

    def list_support_target_platform(self, rknn_model: str | None = None) -> dict | None:
        return {"support_target_platform": ["rk3588"]}

    def release(self) -> None:
        self.released = True


@pytest.fixture
def lite(monkeypatch: pytest.MonkeyPatch) -> type[RKNNLite]:
    api = types.ModuleType("rknnlite.api")
    api.RKNNLite = RKNNLite  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rknnlite", types.ModuleType("rknnlite"))
    monkeypatch.setitem(sys.modules, "rknnlite.api", api)
    monkeypatch.setattr(board, "device_trouble", lambda: None)
    monkeypatch.setattr(board, "library_trouble", lambda: None)
    monkeypatch.setattr(RKNNLite, "made", [])
    monkeypatch.setattr(RKNNLite, "refuses", "")
    return RKNNLite


def test_core_names_have_the_runtimes_values() -> None:
    for name, value in board.MASKS.items():
        assert getattr(RKNNLite, f"NPU_CORE_{name.upper()}") == value


def test_one_context_by_default_and_logits_in_order(lite: type[RKNNLite]) -> None:
    runner = board.BoardRunner(Path("m.rknn"), METADATA, "rk3588")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
    logits = runner.infer(pixels)
    assert np.allclose(logits, pixels.mean((1, 2))) and logits.dtype == np.float32
    assert [c.started for c in lite.made] == [0] and runner.device == "npu"
    assert runner.versions["runtime"] == "API: 2.3.2"
    runner.close()
    assert all(c.released for c in lite.made)


def test_all_cores_are_a_context_each_and_share_the_images(lite: type[RKNNLite]) -> None:
    runner = board.BoardRunner(Path("m.rknn"), METADATA | {"npu_cores": "all"}, "rk3588")
    pixels = np.random.default_rng(0).integers(0, 256, (7, 6, 6, 3), dtype=np.uint8)
    assert np.allclose(runner.infer(pixels), pixels.mean((1, 2)))
    assert [c.started for c in lite.made] == [1, 2, 4]
    assert [c.seen for c in lite.made] == [3, 2, 2]
    runner.close()


def test_a_chip_with_one_core_gets_no_mask(lite: type[RKNNLite], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(RKNNLite, "init_runtime", lambda self, **kwargs: calls.append(kwargs) or 0)
    board.BoardRunner(Path("m.rknn"), METADATA | {"platform": "rk3562"}, "rk3562").close()
    assert calls == [{}]


@pytest.mark.parametrize(("refuses", "words"), [("load", "can't load"), ("start", "did not start")])
def test_a_runtime_that_refuses_is_an_error_and_is_released(lite: type[RKNNLite], refuses: str, words: str) -> None:
    lite.refuses = refuses
    with pytest.raises(VitedgeError, match=words) as error:
        board.BoardRunner(Path("m.rknn"), METADATA, "rk3588")
    assert "2.5.0" in error.value.why
    assert all(c.released for c in lite.made)


def test_a_failed_inference_is_an_error(lite: type[RKNNLite]) -> None:
    runner = board.BoardRunner(Path("m.rknn"), METADATA, "rk3588")
    lite.refuses = "run"
    with pytest.raises(VitedgeError, match="failed while it ran"):
        runner.infer(np.zeros((1, 6, 6, 3), np.uint8))


def test_another_chips_artifact_is_refused(lite: type[RKNNLite]) -> None:
    with pytest.raises(VitedgeError, match="built for rk3588") as error:
        board.BoardRunner(Path("m.rknn"), METADATA, "rk3576")
    assert "--platform rk3576" in error.value.todo
    assert not lite.made


def test_no_runtime_no_device_no_permission(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "rknnlite", None)
    with pytest.raises(VitedgeError) as error:
        board.import_lite()
    assert "pip install rknn-toolkit-lite2" in error.value.todo
    trouble = board.library_trouble((str(tmp_path / "librknnrt.so"),))
    assert trouble is not None and "librknnrt.so is missing" in trouble[0] and "github.com/airockchip" in trouble[1]
    (tmp_path / "librknnrt.so").touch()
    assert board.library_trouble((str(tmp_path / "librknnrt.so"),)) is None
    trouble = board.device_trouble((str(tmp_path / "rknpu"),))
    assert trouble is not None and "no NPU device" in trouble[0]
    device = tmp_path / "renderD129"
    device.touch()
    monkeypatch.setattr(board.os, "access", lambda path, mode: False)
    trouble = board.device_trouble((str(device),))
    assert trouble is not None and "can't be opened" in trouble[0] and "usermod" in trouble[1]


def test_the_chip_is_read_from_the_device_tree(tmp_path: Path) -> None:
    tree = tmp_path / "compatible"
    for text, chip in {
        "radxa,rock-5b\0rockchip,rk3588\0": "rk3588",
        "vendor,board\0rockchip,rk3588s\0": "rk3588",
        "pine64,quartz64-b\0rockchip,rk3566\0": "rk3566",
        "raspberrypi,5-model-b\0brcm,bcm2712\0": None,
    }.items():
        tree.write_text(text)
        assert board.platform_here(tree) == chip
    assert board.platform_here(tmp_path / "none") is None


def test_the_stand_in_keeps_to_the_documented_signatures() -> None:
    assert list(inspect.signature(RKNNLite.init_runtime).parameters)[1:] == [
        "target",
        "device_id",
        "async_mode",
        "core_mask",
    ]
    assert list(inspect.signature(RKNNLite.inference).parameters)[1:] == [
        "inputs",
        "data_type",
        "data_format",
        "inputs_pass_through",
        "get_frame_id",
        "reuse_outputs",
    ]


def _real_class() -> ast.ClassDef:
    """The class RKNNLite of rknn-toolkit-lite2 2.5.0, read from its aarch64 wheel, which can't be imported here."""
    cache = Path(os.environ.get("VITEDGE_TEST_CACHE") or Path.home() / ".cache" / "vitedge-tests") / "rknn-lite2"
    name = "rknn_toolkit_lite2-2.5.0-*.whl"
    if not list(cache.glob(name)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        command += ["--platform", "manylinux2014_aarch64", "--python-version", "3.11", "--dest", str(cache)]
        done = subprocess.run([*command, "rknn-toolkit-lite2==2.5.0"], capture_output=True, text=True)
        if done.returncode and "VITEDGE_REQUIRE_BINDINGS" not in os.environ:
            pytest.skip("rknn-toolkit-lite2's wheel can't be downloaded here")
        assert not done.returncode, done.stderr
    with zipfile.ZipFile(next(cache.glob(name))) as wheel:
        tree = ast.parse(wheel.read("rknnlite/api/rknn_lite.py"))
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "RKNNLite")


def test_the_stand_in_has_the_signatures_and_constants_of_the_vendors_own_class() -> None:
    real = _real_class()
    methods = {node.name: node.args for node in real.body if isinstance(node, ast.FunctionDef)}
    for name in ("__init__", "load_rknn", "init_runtime", "inference", "get_sdk_version", "release"):
        ours = inspect.signature(getattr(RKNNLite, name)).parameters
        args = methods[name]
        assert [a.arg for a in args.args] == list(ours), name
        defaults = [ours[a.arg].default for a in args.args[len(args.args) - len(args.defaults) :]]
        constants = [
            ast.literal_eval(d) if isinstance(d, ast.Constant) else getattr(RKNNLite, ast.unparse(d).split(".")[-1])
            for d in args.defaults
        ]
        assert constants == defaults, name
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in real.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    for name, value in board.MASKS.items():
        assert values[f"NPU_CORE_{name.upper()}"] == value
