"""`build --attention-output`: an artifact of its own, whose map the API gives and the page draws."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import vitedge
from vitedge import targets
from vitedge.bundle import Bundle
from vitedge.errors import VitedgeError

httpx = pytest.importorskip("httpx")
from live_server import serving, wait_until_ready  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NAME = "onnxruntime-int8-attention"


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder, shapes_folder) -> vitedge.api.Run:
    """A quantised run with an artifact that has a second output, and one that has not."""
    root = tmp_path_factory.mktemp("attention") / "run"
    made = vitedge.compress(tiny_folder, run=root, calib=str(shapes_folder), calib_size=16, quantize="static")
    made.build("onnxruntime", precision="int8", attention_output=True)
    made.build("onnxruntime", precision="int8", attention="parts", mlp_groups="apart")
    return made


def opened(run: vitedge.api.Run, name: str):
    artifact = next(a for a in run.artifacts if a.name == name)
    return targets.get(artifact.target).open(artifact.path, artifact.facts)


def test_it_stands_beside_the_one_without(run, shapes_folder) -> None:
    facts = {a.name: a.facts for a in run.artifacts}
    assert set(facts) == {NAME, "onnxruntime-int8"}
    assert facts[NAME]["attention_output"] == [4, 4] and facts["onnxruntime-int8"]["attention_output"] is None
    assert "attention_output" not in (run.root / "vitedge.toml").read_text()
    pixels = np.array(np.load(run.root / "calib/pixels.npy")[:3])
    with_map, without = opened(run, NAME), opened(run, "onnxruntime-int8")
    logits, attention = with_map.outputs(pixels)
    assert attention.shape == (3, 4, 4) and attention.min() > 0 and np.ptp(attention) > 0
    assert np.array_equal(logits, with_map.infer(pixels))
    assert np.abs(logits - without.infer(pixels)).max() < 0.05 * np.ptp(logits)
    assert run.predict(shapes_folder).artifact == "onnxruntime-int8"


def test_openvino_has_the_same_map(run) -> None:
    pytest.importorskip("openvino")
    run.build("openvino", precision="fp32", attention_output=True)
    run.build("onnxruntime", precision="fp32", attention_output=True)
    pixels = np.array(np.load(run.root / "calib/pixels.npy")[:3])
    found = [opened(run, f"{name}-fp32-attention").outputs(pixels) for name in ("openvino", "onnxruntime")]
    assert np.abs(found[0][1] - found[1][1]).max() < 1e-4
    bundle = Bundle.open(run.root)
    for name in ("build/openvino-fp32-attention", "build/onnxruntime-fp32-attention"):
        bundle.drop_step(name)


def test_a_target_without_it_says_so(run) -> None:
    with pytest.raises(VitedgeError, match="no option --attention-output"):
        run.build("rknn", attention_output=True)


@pytest.fixture(scope="module")
def attending(run):
    with serving(run.root) as (url, _):
        wait_until_ready(url, httpx)
        yield url


def test_the_api_gives_it_where_it_is_asked_for(attending, shapes_folder) -> None:
    image = next(Path(shapes_folder).rglob("*.png")).read_bytes()
    models = {m["name"]: m for m in httpx.get(attending + "v1/models").json()["models"]}
    assert models[NAME]["attention"] and models["onnxruntime-int8"]["default"]

    def ask(artifact: str, attention: str) -> httpx.Response:
        parameters = {"artifact": artifact, "attention": attention}
        header = {"content-type": "image/png"}
        return httpx.post(attending + "v1/predict", params=parameters, content=image, headers=header, timeout=60)

    found = ask(NAME, "true").json()["images"][0]
    assert found["top"] and (found["attention"]["rows"], found["attention"]["columns"]) == (4, 4)
    assert len(found["attention"]["values"]) == 16 and 0 < sum(found["attention"]["values"]) < 1.001
    assert "attention" not in ask(NAME, "false").json()["images"][0]
    assert "attention" not in ask("onnxruntime-int8", "true").json()["images"][0]
    assert ask(NAME, "perhaps").status_code == 422


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_draws_it_over_the_image(attending, shapes_folder, width) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 844})
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(attending)
        page.wait_for_selector("option[value='onnxruntime-int8']", state="attached")
        page.select_option(".answer:nth-of-type(2) select", NAME)
        page.set_input_files("#file", str(next(Path(shapes_folder).rglob("*.png"))))
        page.wait_for_selector(".answer:nth-of-type(2) figure:not([hidden])")
        assert page.locator(".answer:nth-of-type(1) figure").is_hidden()
        colours = page.evaluate(
            "(() => { const c = document.querySelectorAll('canvas')[1]; return JSON.stringify([c.width, c.height, "
            "...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]); })()"
        )
        wide, high, *values = json.loads(colours)
        pixels = np.array(values).reshape(high, wide, 4)
        assert (wide, high) == (448, 448) and pixels[..., 3].min() == 255
        assert np.ptp(pixels[..., 0].astype(int) - pixels[..., 2]) > 60  # from violet to yellow, which no grey image is
        assert page.evaluate("document.documentElement.scrollWidth") <= width and not problems
        browser.close()
