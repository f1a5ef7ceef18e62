"""`vitedge sensitivity`, on a real run folder of a small model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vitedge.cli import main


@pytest.fixture
def vitedge(monkeypatch, capsys):
    """Runs the command line in this process: exit status, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["vitedge", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as done:
            status = int(done.code or 0)
        return status, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder, shapes_folder) -> Path:
    """What `vitedge compress` makes of the two-block ViT."""
    from vitedge.config import make_config
    from vitedge.pipeline import compress

    root = tmp_path_factory.mktemp("sensitivity") / "run"
    config = {"model": {"model": str(tiny_folder)}, "calib": {"calib": str(shapes_folder)}}
    compress(root, make_config(config, source="the test"))
    return root


SMALL = ("--align", 8, "--min-hidden", 8)


def test_curve_of_the_whole_and_of_each_layer(vitedge, run: Path) -> None:
    status, out, err = vitedge("sensitivity", "--run", run, "--shares", "0.2,0.4", *SMALL, "--json")
    assert status == 0, err
    points = json.loads(out)["points"]
    whole = [p for p in points if p["layer"] == "total"]
    assert [round(p["removed"], 1) for p in whole] == [0.2, 0.4]
    layers = {p["layer"] for p in points} - {"total"}
    halves = {f"block{i}.{half}" for i in (0, 1) for half in ("attention", "mlp")}
    assert layers == halves | {"block0.tokens"}  # after the last block nothing reads fewer
    assert all(0 <= p["agreement"] <= 1 and p["predicted_kl"] >= 0 for p in points)
    tables = json.loads((run / "analysis" / "25-sensitivity.json").read_text())["tables"]
    assert len(tables[0]["rows"]) == 2 and len(tables[1]["rows"]) == 15 and tables[1]["columns"][4] == "95 %"


def test_tables_on_stdout(vitedge, run: Path) -> None:
    status, out, _ = vitedge("sensitivity", "--run", run, "--shares", "0.3", *SMALL)
    assert status == 0 and "block1.mlp" in out and "####" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shares", "0.1,half"], "no list of shares"),
        (["--shares", "0.1,1.5"], "at most 0.9"),
        (["--align", "4096"], "--align 64"),
    ],
)
def test_wrong_calls(vitedge, run: Path, arguments: list[str], words: str) -> None:
    status, _, err = vitedge("sensitivity", "--run", run, *arguments)
    assert status == 2 and words in err
