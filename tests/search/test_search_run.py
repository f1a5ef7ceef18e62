"""Whole searches over a ViT of two blocks: the front, its recipes, going on, workers that are killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import vitedge
from tests.conftest import REPOSITORY
from vitedge.bundle import Bundle
from vitedge.errors import VitedgeError
from vitedge.search.folders import link_run

pytest.importorskip("optuna")
# A cost that no other process on the machine changes.
OPTIONS = {"target": "onnxruntime", "budget": "size-mib=0.06", "max_drop": 60, "minutes": 30, "held_out": 12}
OPTIONS |= {"recover": "ridge", "shares": "0.2:0.4", "calib_size": 24}
FIXED = Path(__file__).with_name("fixed.toml")


def search(model: Path, images: Path, out: Path, **options):
    return vitedge.search(model, calib=str(images), out=out, config=FIXED, **(OPTIONS | options))


def facts(out: Path) -> dict:
    return json.loads((out / "search.json").read_text())


def outcome(found: dict) -> dict:
    """What does not depend on who did it, and when."""
    points = {
        key: {k: v for k, v in one["measured"].items() if k not in ("seconds", "machine")}
        for key, one in found["points"].items()
    }
    return {"front": found["front"], "best": found["best"], "points": points}


@pytest.fixture(scope="module")
def done(tmp_path_factory, tiny_folder, shapes_folder) -> Path:
    out = tmp_path_factory.mktemp("search") / "out"
    search(tiny_folder, shapes_folder, out, trials=5)
    shutil.copy(out / "search.json", out / "first.json")
    return out


def test_the_front_is_of_finished_runs(done: Path) -> None:
    found = facts(done)
    assert len(found["points"]) == 5 and found["plan"]["considered"] > 20 and found["front"]
    costs = [found["points"][key]["measured"]["size_mib"] for key in found["front"]]
    agreements = [found["points"][key]["measured"]["agreement"] for key in found["front"]]
    assert costs == sorted(costs) and agreements == sorted(agreements)
    for key in found["front"]:
        measured = found["points"][key]["measured"]
        run = vitedge.open(done / measured["run"])
        assert [one.name for one in run.artifacts] == [measured["artifact"]]
        assert measured["accepted"] and measured["images"] == 12
    assert {one["candidate"]["precision"] for one in found["points"].values()} == {"fp32", "int8"}
    best = found["best"]["size-mib=0.06"]
    assert best and found["points"][best]["measured"]["size_mib"] <= 0.06


def test_no_image_is_both_fitted_to_and_judged_on(done: Path, shapes_folder: Path) -> None:
    bundle = Bundle.open(done / "stages" / "dense")
    fitted = bundle.json("calib/dataset.json")["files"]
    assert len(fitted) == 24
    held = next(file for file in (done / "held-out").glob("*.npy") if "-" not in file.stem)
    import numpy as np

    pixels, used = np.load(held), np.load(bundle.path("calib/pixels.npy"))
    assert len(pixels) == 12
    assert not {image.tobytes() for image in pixels} & {image.tobytes() for image in used}


def test_a_recipe_makes_the_run_again(done: Path, tmp_path: Path) -> None:
    found = facts(done)
    assert sorted(path.stem for path in (done / "recipes").glob("*.toml")) == sorted(found["front"])
    key = next(key for key in found["front"] if found["points"][key]["candidate"]["share"])
    again = vitedge.compress(config=done / "recipes" / f"{key}.toml", run=tmp_path / "again")
    first = vitedge.open(done / found["points"][key]["measured"]["run"])
    for name in ("model/model.safetensors", "onnx/float32.onnx"):
        assert again.bundle.manifest.artifacts[name].sha256 == first.bundle.manifest.artifacts[name].sha256


def test_a_family_for_several_budgets(done: Path, tiny_folder, shapes_folder) -> None:
    sizes = sorted({one["measured"]["size_mib"] for one in facts(done)["points"].values()})
    budgets = [f"size-mib={sizes[0] * 1.001}", f"size-mib={sizes[-1] * 1.001}"]
    result = search(tiny_folder, shapes_folder, done, trials=5, budget=budgets, max_drop=100)
    assert len({point.candidate.key for point in result.best.values() if point}) == 2
    run = vitedge.open(done / "family")
    measured = run.bench(seconds=0.1, launches=1, data=str(shapes_folder), gate=f"size-mib={sizes[0] * 1.001}")
    from vitedge.bench.gate import parse_gates, pick

    small = pick(parse_gates(measured.gate), measured.rows)
    assert small is not None and small.size_mib <= sizes[0] * 1.001 and len(run.artifacts) == 2
    assert measured.broken_gates(), "the larger one is out of the limits, which --pick does not mind"


def test_the_report_tells_of_the_search(done: Path) -> None:
    page = (done / "report.html").read_text()
    assert "Front by MiB and agreement" in page and "What the candidates took" in page


def test_a_search_goes_on_and_makes_nothing_twice(done: Path, tiny_folder, shapes_folder) -> None:
    before = {path: path.stat().st_mtime_ns for path in (done / "runs").glob("*/manifest.json")}
    written = facts(done)
    result = search(tiny_folder, shapes_folder, done, trials=6)
    assert len(result.points) == 6
    kept = outcome(facts(done))["points"]
    assert {key: kept[key] for key in written["points"]} == outcome(written)["points"]
    best = {point.measured.run for point in (*result.best.values(), result.front[0]) if point}
    for path, stamp in before.items():
        if path.parent.relative_to(done).as_posix() not in best:  # whose report was written again
            assert path.stat().st_mtime_ns == stamp, path


def test_a_study_of_another_search_is_refused(done: Path, tiny_folder, shapes_folder) -> None:
    with pytest.raises(VitedgeError, match="is of another search"):
        search(tiny_folder, shapes_folder, done, shares="0.1:0.2")


def test_too_few_images(tiny_folder, shapes_folder, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(shapes_folder.rglob("*.png"))[:12]:
        (few / path.name).write_bytes(path.read_bytes())
    with pytest.raises(VitedgeError, match="12 calibration images are too few"):
        search(tiny_folder, few, tmp_path / "out")


def test_images_that_are_too_few_for_pruning_are_counted_with_those_held_out(tmp_path: Path, shapes_folder) -> None:
    few = tmp_path / "images"
    few.mkdir()
    files = sorted(shapes_folder.rglob("*.png"))
    for n in range(60):
        (few / f"{n}.png").write_bytes(files[n % len(files)].read_bytes())
    told = {"calib": str(few), "target": "onnxruntime", "image_size": 64}
    with pytest.raises(VitedgeError, match="60 calibration images are too few") as refused:
        vitedge.search("random:vit_ti_16", out=tmp_path / "search", **told)
    assert "20 of them are held out" in refused.value.why and "at least 69" in refused.value.todo


def test_a_linked_run_changes_alone(done: Path, tmp_path: Path) -> None:
    source, copy = done / "stages" / "dense", done / "copy"
    link_run(source, copy)
    before = Bundle.open(source).manifest
    vitedge.compress(
        config=next((done / "recipes").glob("*.toml")), run=copy, quantize="static", preset="full", prune=None
    )
    assert Bundle.open(source).manifest == before
    for name in before.artifacts:
        Bundle.open(source).verified(name)


@pytest.mark.slow
def test_workers_that_are_killed_end_with_the_front_of_one(done: Path, tiny_folder, shapes_folder, tmp_path) -> None:
    out = tmp_path / "out"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in (OPTIONS | {"trials": 5}).items()]
    command = [
        sys.executable,
        "-m",
        "vitedge",
        "search",
        "--model",
        tiny_folder,
        "--calib",
        shapes_folder,
        "--out",
        out,
        "--config",
        FIXED,
    ]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}

    def start() -> subprocess.Popen:
        return subprocess.Popen([*command, *flags], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def made() -> int:
        return len(facts(out)["points"]) if (out / "search.json").exists() else 0

    rng, going, kills = random.Random(0), [start(), start()], [1, 2, 3]
    while any(process.poll() is None for process in going):
        if kills and made() >= kills[0]:
            kills.pop(0)
            victim = rng.choice([process for process in going if process.poll() is None])
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            going.append(start())
        time.sleep(0.05)
    ended = [process for process in going if process.returncode != -signal.SIGKILL]
    assert all(process.returncode == 0 for process in ended), [p.stderr.read() for p in ended]
    assert outcome(facts(out)) == outcome(json.loads((done / "first.json").read_text()))


@pytest.mark.slow
def test_ctrl_c_leaves_a_valid_front(tiny_folder, shapes_folder, tmp_path) -> None:
    out = tmp_path / "out"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    # A background job of a shell is started with SIGINT ignored, and hands that on.
    script = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    script += "runpy.run_module('vitedge', run_name='__main__')"
    command = [sys.executable, "-c", script, "search", "--model", tiny_folder, "--calib", shapes_folder, "-o", out]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, *flags, "--json"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (out / "search.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert process.returncode == 0 and "interrupted" in stderr
    told = json.loads(stdout)
    assert told == facts(out) and told["front"]
    for key in told["front"]:
        assert vitedge.open(out / told["points"][key]["measured"]["run"]).artifacts
        assert (out / "recipes" / f"{key}.toml").is_file()
