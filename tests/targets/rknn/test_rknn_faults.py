"""What the compiler's log and table say, and versions that do not fit: recorded lines, no toolkit."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitedge.errors import VitedgeError
from vitedge.targets import get
from vitedge.targets.base import CostRow, CostTable
from vitedge.targets.rknn import board, faults, versions

REGTASK = (
    "E RKNN: [13:48:46.380] REGTASK: The bit width of field value exceeds the limit, target: lite, offset: 0x1028, "
    "shift = 0, limit: 0x7ff, value: 0x800"
)


def table(*rows: tuple[str, str, str]) -> CostTable:
    """Rows of (operator, where it runs, type)."""
    made = [CostRow(f"{op}:block0.{n}", op, dtype, device, None, None) for n, (op, device, dtype) in enumerate(rows)]
    return CostTable(made, None)


def test_a_layer_that_overflows_the_registers_fails_the_build() -> None:
    faults.refuse_overflow("D RKNN: [13:48:46.380] all is well")
    with pytest.raises(VitedgeError, match="does not fit into the NPU's registers") as error:
        faults.refuse_overflow(f"I start\n{REGTASK}\nI done")
    assert "limit: 0x7ff, value: 0x800" in error.value.why and "--attention parts" in error.value.todo


def test_layers_on_the_cpu_are_told_with_their_reason() -> None:
    log = "W RKNN: [1] Transpose will fallback to CPU, because input shape has exceeded the max limit, height(64)"
    now = table(("Transpose", "cpu", "int8"), ("exNorm", "npu", "float16"), ("Reshape", "cpu", "int8"))
    (first,) = faults.fallback_warnings(now, log, None)
    assert first.startswith("2 layers run on the CPU: Transpose") and "has exceeded the max limit" in first
    (new,) = faults.fallback_warnings(now, "", ["Reshape Reshape:block0.2"])
    assert new == "1 layers run on the CPU that did not before: Transpose Transpose:block0.0."
    assert faults.fallback_warnings(table(("exNorm", "npu", "float16")), log, []) == []
    assert faults.previous_fallbacks({"cpu_fallbacks": ["x"]}) == ["x"] and faults.previous_fallbacks(None) is None


def named(*rows: tuple[str, str]) -> CostTable:
    """Rows of (full name, type), as rknn-toolkit2 2.5.0 names them."""
    return CostTable([CostRow(name, name.partition(":")[0], dtype, "npu", None, None) for name, dtype in rows], None)


def test_tensors_asked_for_in_float16_are_looked_up_in_the_table() -> None:
    table = named(
        ("Conv:block0.attention.out.matmul#2", "int8"),
        ("exDataConvert:block0.attention.out.matmul_mm_tp_sw__cvt_int8_float16", "int8"),
        ("Add:block0.residual1", "float16"),
        ("exDataConvert:block0.residual1-rs__cvt_float16_int8", "float16"),
        ("ConvAdd:block0.residual2", "int8"),
        ("exNorm:block0.norm2#1", "int8"),
    )
    asked = ["block0.residual1-rs", "block0.residual2-rs", "block0.norm2#1", "block0.mlp.gelu.0_tp-rs"]
    assert faults.not_float16(table, asked) == ["block0.residual2-rs"]
    assert faults.not_float16(table, ["block0.attention.out.matmul_mm_tp_sw"]) == [
        "block0.attention.out.matmul_mm_tp_sw"
    ]
    assert faults.not_float16(table, []) == []


def test_a_chip_that_is_not_built_for_is_refused_by_name() -> None:
    with pytest.raises(VitedgeError, match="rv1106") as error:
        get("rknn").check(Path("none.onnx"), "int8", "rv1106")
    assert "LayerNorms would run on its CPU" in error.value.why and "rk3588" in error.value.todo


def test_the_level_of_optimisation_is_the_highest_that_agrees() -> None:
    asked: list[int] = []

    def agrees(level: int) -> bool:
        asked.append(level)
        return level <= 1

    assert faults.highest_level(agrees) == 1 and asked == [2, 1]
    assert faults.highest_level(lambda level: False) is None


def test_fused_attention_on_an_rk3576_is_a_warning() -> None:
    (line,) = faults.platform_warnings("rk3576", table(("exSDPAttention", "npu", "float16")))
    assert "#574" in line and "--attention parts" in line
    assert faults.platform_warnings("rk3576", table(("exMatMul", "npu", "float16"))) == []
    assert faults.platform_warnings("rk3588", table(("exSDPAttention", "npu", "float16"))) == []


def test_the_librarys_version_is_read_from_its_file(tmp_path: Path) -> None:
    library = tmp_path / "librknnrt.so"
    library.write_bytes(b"\x7fELF\0\0librknnrt version: 2.3.2 (429f97ae6b@2025-04-09T09:09:27)\0more")
    assert versions.library_version(library) == "2.3.2"
    assert versions.library_version(tmp_path / "none") == ""
    assert versions.numbers("API: 2.3.2 (429f97ae6b@2025-04-09)") == (2, 3, 2) and versions.numbers("unknown") == ()


@pytest.mark.parametrize(
    ("found", "toolkit", "words"),
    [
        ({"runtime": "2.5.0", "driver": "0.9.8", "rknn-toolkit-lite2": "2.5.0"}, "2.5.0", []),
        ({"runtime": "1.4.0", "driver": "0.9.8"}, "", ["refuses what toolkits of 2.x build"]),
        ({"runtime": "2.3.2", "driver": "0.9.3"}, "", ["driver 0.9.3 is older than 0.9.6"]),
        ({"runtime": "2.3.2", "rknn-toolkit-lite2": "2.5.0"}, "", ["published together"]),
        ({"runtime": "API: 2.3.2"}, "2.5.0", ["built by rknn-toolkit2 2.5.0, and librknnrt here is 2.3.2"]),
        ({}, "2.5.0", []),
    ],
)
def test_pairs_that_do_not_fit_are_named(found: dict[str, str], toolkit: str, words: list[str]) -> None:
    lines = versions.misfits(found, toolkit)
    assert len(lines) == len(words) and all(word in line for word, line in zip(words, lines, strict=True))
    assert get("rknn").misfits({"toolkit": toolkit}, found) == lines


def test_a_board_shows_versions_and_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, driver = tmp_path / "librknnrt.so", tmp_path / "version"
    library.write_bytes(b"librknnrt version: 2.3.2 (x)")
    driver.write_text("RKNPU driver: v0.9.2\n")
    monkeypatch.setattr(board, "LIBRARIES", (str(library),))
    monkeypatch.setattr(board, "driver_version", lambda: "v0.9.2")
    monkeypatch.setattr(board, "import_lite", lambda: None)
    monkeypatch.setattr(board, "device_trouble", lambda: None)
    monkeypatch.setattr(board, "library_trouble", lambda: None)
    found = board.probe("rknn", "rk3588")
    assert found.versions["runtime"] == "2.3.2" and found.versions["driver"] == "v0.9.2"
    assert found.versions["kernel"] and found.can_run and "older than 0.9.6" in found.notes[0]


def test_the_drivers_version_is_read_where_the_user_may(tmp_path: Path) -> None:
    module = tmp_path / "version"
    module.write_text("0.9.8\n")
    assert board.driver_version((tmp_path / "none", module)) == "0.9.8"
    assert board.driver_version((tmp_path / "none",)) == ""
