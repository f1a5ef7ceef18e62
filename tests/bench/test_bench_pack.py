from __future__ import annotations

import io
import json
import tarfile

import pytest
from bench_run import QUICK, make_run, vitedge
from bench_small import write_images

from vitedge.bench.pack import digest, write_pack
from vitedge.bench.unpack import PackSource, unpack
from vitedge.bundle import Bundle
from vitedge.errors import VitedgeError


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack")
    images = write_images(folder / "images")
    run = make_run(folder, noise=0.02)
    write_pack(Bundle.open(run), folder / "pack.tar", data=str(images))
    return folder


def _members(pack):
    with tarfile.open(pack) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]


def _write(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_a_pack_gives_the_same_figures_as_the_run_it_is_of(packed, tmp_path):
    vitedge("bench", "--run", packed / "run", "--data", packed / "images", *QUICK, "--json", tmp_path / "run.json")
    done = vitedge("bench", packed / "pack.tar", *QUICK, "--json", tmp_path / "pack.json", cwd=tmp_path)
    assert "40 images" in done.stdout
    here, there = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("run", "pack"))
    for a, b in zip(here["rows"], there["rows"], strict=True):
        keys = ("artifact", "top1", "top5", "delta_top1", "delta_ci95", "agreement", "ece", "by_image")
        for key in (*keys, *(("size_mib", "macs") if a["role"] == "artifact" else ())):
            assert a[key] == b[key], key
        for key in ("sqnr_db", "kl_nats"):
            assert a[key] is b[key] is None or a[key] == pytest.approx(b[key])
    assert [row["artifact"] for row in there["rows"]] == ["source", "onnxruntime-fp32", "onnxruntime-int8"]
    # A pack holds the source's logits and not its graph.
    assert there["rows"][0]["latency_ms"] is None and there["reference"] == "source"
    assert there["rows"][2]["delta_top1"] < 0 and there["rows"][1]["stages_ms"]["end_to_end"]["n"] >= 10
    assert there["data"]["path"] == "images" and str(packed) not in json.dumps(there["data"])


def test_the_tensors_are_those_of_the_images(packed, tmp_path):
    from vitedge.bench.from_bundle import find_source

    folder, index = unpack(packed / "pack.tar", tmp_path / "out")
    source = PackSource(folder, index)
    original = find_source(Bundle.open(packed / "run"), str(packed / "images"), None, 0)
    (at, pixels), (_, expected) = next(source.batches(30, 64)), next(original.batches(30, 64))
    assert at.tolist() == list(range(30, 40)) and (pixels == expected).all()
    assert source.labels.tolist() == original.labels.tolist() and source.reference(at).shape == (10, 4)


def test_an_unpacked_folder_is_checked_and_mended(packed, tmp_path):
    folder, _ = unpack(packed / "pack.tar", tmp_path / "out")
    (folder / "bench").mkdir()
    (folder / "bench/kept").write_text("x")
    (folder / "pixels.u8").write_bytes(b"changed")
    unpack(packed / "pack.tar", tmp_path / "out")
    assert (folder / "pixels.u8").stat().st_size == 40 * 768 and (folder / "bench/kept").read_text() == "x"


@pytest.mark.parametrize("cut", [100, 3000, 20_000])
def test_a_truncated_pack(packed, tmp_path, cut):
    (tmp_path / "cut.tar").write_bytes((packed / "pack.tar").read_bytes()[:cut])
    with pytest.raises(VitedgeError, match="damaged"):
        unpack(tmp_path / "cut.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.tar"]


def test_an_altered_pack(packed, tmp_path):
    members = dict(_members(packed / "pack.tar"))
    pixels = bytearray(members["pixels.u8"])
    pixels[1000] ^= 1
    changed = _write(tmp_path / "a.tar", (members | {"pixels.u8": bytes(pixels)}).items())
    with pytest.raises(VitedgeError, match=r"pixels.u8 has another checksum"):
        unpack(changed)
    index = json.loads(members["pack.json"])
    index["shape"][0] = 39
    with pytest.raises(VitedgeError, match=r"pack.json was changed"):
        unpack(_write(tmp_path / "b.tar", (members | {"pack.json": json.dumps(index).encode()}).items()))
    index = json.loads(members["pack.json"]) | {"schema": 9}
    with pytest.raises(VitedgeError, match="another version"):
        unpack(_write(tmp_path / "c.tar", (members | {"pack.json": json.dumps(index).encode()}).items()))


@pytest.mark.parametrize("evil", ["../evil", "/tmp/evil", "artifacts/../../evil", "a//b", ".hidden", "pack.json"])
def test_no_path_leaves_the_folder(packed, tmp_path, evil):
    members = dict(_members(packed / "pack.tar"))
    index = json.loads(members["pack.json"])
    index["files"][evil] = index["files"]["labels.npy"]
    index["digest"] = digest(index)
    pack = _write(tmp_path / "e.tar", [("pack.json", json.dumps(index).encode()), (evil, members["labels.npy"])])
    with pytest.raises(VitedgeError, match="leaves the folder or is not plain"):
        unpack(pack, tmp_path / "in/out")
    assert not (tmp_path / "in").exists() or not any((tmp_path / "in").rglob("*"))


def test_a_link_is_not_followed(packed, tmp_path):
    members = _members(packed / "pack.tar")
    with tarfile.open(tmp_path / "l.tar", "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if name == "labels.npy":
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    with pytest.raises(VitedgeError, match=r"labels.npy is no file"):
        unpack(tmp_path / "l.tar")


def test_no_pack_and_no_data(tmp_path):
    with pytest.raises(VitedgeError, match="There is no pack"):
        unpack(tmp_path / "none.tar")
    with pytest.raises(VitedgeError, match="needs images"):
        write_pack(Bundle.open(make_run(tmp_path)), tmp_path / "p.tar")
