from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import pytest
from bench_run import QUICK, make_run, vitedge
from bench_small import write_images

from vitedge.bundle import Bundle
from vitedge.errors import VitedgeError
from vitedge.report.collect import collect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A measured run, with a table of another room and a file that is none."""
    folder = tmp_path_factory.mktemp("report")
    write_images(folder / "images")
    run = make_run(folder, noise=0.02)
    vitedge("bench", "--run", run, "--data", folder / "images", *QUICK)
    (run / "analysis").mkdir()
    rows = [["block0.<fc1>", 31.5], ["block1.fc1", None]]
    table = {"title": "Error by layer", "columns": ["layer", "sqnr_db"], "rows": rows, "bars": ["sqnr_db"]}
    (run / "analysis/40-layers.json").write_text(json.dumps(table))
    (run / "analysis/50-broken.json").write_text("[1]")
    vitedge("report", "--run", run)
    return run


class _Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.ids = [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.links += [values[key] for key in ("src", "href") if values.get(key)]
        self.ids += [values["id"]] if "id" in values else []


def test_the_page_is_whole_and_asks_for_nothing(run):
    html = (run / "report.html").read_text()
    parser = _Links()
    parser.feed(html)
    assert all(link.startswith(("#", "data:")) for link in parser.links)
    assert {link[1:] for link in parser.links if link[0] == "#"} <= set(parser.ids)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest", html)
    assert "block0.&lt;fc1&gt;" in html and "analysis/50-broken.json" in html
    assert "onnxruntime-int8" in html and html.count("<svg") >= 3 and "data:image/jpeg;base64," in html
    assert "sha256" in html and "vitedge build --target" not in html.split("<pre>")[0]


def test_the_markdown_has_the_same_rows(run):
    text = (run / "report.md").read_text()
    assert "| onnxruntime-int8 |" in text and "| source |" in text and "**Recommended:" in text
    assert "vitedge bench --run" in text


def test_a_newcomer_sees_at_once_which_artifact_to_take_and_what_it_costs(run):
    html = (run / "report.html").read_text()
    top = html[html.index('<div class="hero">') : html.index("All artifacts against the source model")]
    assert "Take this one" in top and 'id="pick">onnxruntime-' in top
    for card in ("top-1", "latency, p50", "size", "peak memory"):
        assert f"<h3>{card}</h3>" in top
    assert re.search("(than|as) the source", top) and "points against the source" in top
    overview = html[html.index("All artifacts against the source model") : html.index('<section id="plots">')]
    assert overview.index(">source<") < overview.index(">onnxruntime-fp32<") and "speed-up" in overview


def test_classes_and_their_confusions_are_shown(run):
    html = (run / "report.html").read_text()
    part = html[html.index('<section id="classes">') :]
    assert 'class="matrix"' in part and "north west" in part and "most often taken for" in part
    assert part.count('class="right"') >= 4


def test_records_that_were_edited_show_no_flips(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for path in (copy / "bench/work").rglob("*.rec"):
        data = bytearray(path.read_bytes())
        data[-20] ^= 1
        path.write_bytes(data)
    vitedge("report", "--run", copy)
    html = (copy / "report.html").read_text()
    assert "onnxruntime-int8" in html and 'id="flips"' not in html and 'id="classes"' not in html


def test_names_are_never_markup(tmp_path):
    """Classes, images and folders may be called anything."""
    images = write_images(tmp_path / "<script>x()</script>", 12)
    evil = "<img src=x onerror=alert(1)>.png"
    (images / "000.png").rename(images / evil)
    bad = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    (images / "001.png").rename(images / bad)
    text = (images / "labels.csv").read_text().replace("000.png", evil)
    (images / "labels.csv").write_text("\n".join(line for line in text.splitlines() if "001.png" not in line) + "\n")
    run = make_run(tmp_path, noise=0.02)
    vitedge("bench", "--run", run, "--data", images, *QUICK)
    vitedge("report", "--run", run)
    assert "<script>x()" not in (run / "report.md").read_text()
    html = (run / "report.html").read_text()
    assert "<script>x()" not in html and "<img src=x" not in html


def test_the_commands_are_those_that_were_typed(run):
    html = (run / "report.html").read_text()
    typed = html[html.index('<section id="commands">') :]
    assert "vitedge bench --run" in typed and "--seconds 0.05 --launches 2" in typed


def test_a_run_that_was_not_measured(tmp_path):
    with pytest.raises(VitedgeError, match="vitedge bench"):
        collect(Bundle.open(make_run(tmp_path)))


def _chromium(*arguments: str, page: Path) -> subprocess.CompletedProcess:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--v=0"]
    with tempfile.TemporaryDirectory() as profile:
        command = [CHROMIUM, *flags, f"--user-data-dir={profile}", *arguments, page.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)


_CHECK = """<script>
const out = {};
const box = (e) => e.getBoundingClientRect();
out.plots = [...document.querySelectorAll("svg.plot")].map((e) => box(e).width > 200 && box(e).height > 50);
out.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
const table = document.querySelector("table.sortable");
const first = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
table.querySelector("button").click(); const up = first();
table.querySelector("button").click(); out.sorted = JSON.stringify(up) === JSON.stringify(first().reverse());
const point = document.querySelector("circle.point");
point.dispatchEvent(new Event("mouseover", {bubbles: true}));
out.tip = !document.getElementById("tip").hidden && document.getElementById("tip").textContent;
const form = document.getElementById("budget");
form.elements.ms.value = "0.0000001"; form.dispatchEvent(new Event("input", {bubbles: true}));
out.none = document.getElementById("pick").textContent;
form.elements.ms.value = ""; form.elements.drop.value = "100"; form.dispatchEvent(new Event("input",
{bubbles: true})); out.pick = document.getElementById("pick").textContent;
out.width = document.documentElement.clientWidth;
out.resources = performance.getEntriesByType("resource").map((one) => one.name);
document.title = JSON.stringify(out);
document.body.dataset.out = JSON.stringify(out);
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
@pytest.mark.parametrize("width", [1200, 500])
def test_in_chromium_the_plots_are_drawn_and_nothing_is_asked_of_a_network(run, tmp_path, width):
    page = tmp_path / "page.html"
    page.write_text((run / "report.html").read_text().replace("</body>", _CHECK + "</body>"))
    log = tmp_path / "net.json"
    done = _chromium(f"--window-size={width},900", f"--log-net-log={log}", "--dump-dom", page=page)
    assert "CONSOLE" not in done.stderr, done.stderr
    found = re.search(r"<title>({.*?})</title>", done.stdout)
    assert found, done.stdout[-2000:] + done.stderr
    out = json.loads(found[1].replace("&amp;", "&").replace("&lt;", "<"))
    assert len(out["plots"]) >= 3 and all(out["plots"]) and out["overflow"] <= 0
    assert out["sorted"] and out["tip"] and out["none"] == "none" and out["pick"].startswith("onnxruntime-")
    assert out["resources"] == []
    # Chromium asks Google for the time and for updates on its own account.
    asked = set(re.findall(r'"url":"(https?://[^"/]+)', log.read_text()))
    assert all(host.endswith((".google.com", ".googleapis.com")) for host in asked), asked


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
def test_chromium_takes_a_image_of_it(run, tmp_path):
    from PIL import Image

    _chromium("--window-size=1200,1600", f"--screenshot={tmp_path / 'page.png'}", page=run / "report.html")
    image = Image.open(tmp_path / "page.png").convert("L")
    assert image.size == (1200, 1600) and len(image.getcolors(256) or []) > 20
