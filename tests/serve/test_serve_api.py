from __future__ import annotations

import asyncio
import base64
import io
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from bench_run import vitedge
from bench_small import SIZE
from PIL import Image

httpx = pytest.importorskip("httpx")
from live_server import serving, wait_until_ready  # noqa: E402

from vitedge.errors import VitedgeError  # noqa: E402
from vitedge.serve.options import ServeOptions  # noqa: E402
from vitedge.serve.run import bind  # noqa: E402


@pytest.fixture(scope="module")
def files(served_run) -> list[Path]:
    return sorted((served_run.parent / "images").glob("*.png"))


def post(url: str, **request) -> httpx.Response:
    return httpx.post(url + "v1/predict", timeout=60, **request)


def classes_of(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [image["top"][0]["class"] for image in answer.json()["images"]]


@pytest.fixture(scope="module")
def predicted(served_run, files) -> list[str]:
    """What the artifact says of them, asked without a server."""
    from vitedge.targets.onnxruntime.runner import OnnxRuntimeRunner

    runner = OnnxRuntimeRunner(served_run / "build/onnxruntime-int8/model.onnx")
    logits = runner.infer(np.stack([np.asarray(Image.open(f)) for f in files]))
    names = (served_run / "model/classes.txt").read_text().splitlines()
    return [names[k] for k in logits.argmax(1)]


def test_every_way_to_send_images_gives_what_the_artifact_says(server, files, predicted) -> None:
    form = [("file", (f.name, f.read_bytes(), "image/png")) for f in files]
    assert classes_of(post(server, files=form)) == predicted
    texts = [base64.b64encode(f.read_bytes()).decode() for f in files]
    assert classes_of(post(server, json={"images": texts})) == predicted
    urls = [f"data:image/png;base64,{text}" for text in texts]
    assert classes_of(post(server, json={"images": urls, "top": 2})) == predicted
    pixels = np.stack([np.asarray(Image.open(f)) for f in files])
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    header = {"content-type": "application/x-npy"}
    assert classes_of(post(server, content=buffer.getvalue(), headers=header)) == predicted
    one = post(server, content=files[0].read_bytes(), headers={"content-type": "image/png"})
    assert classes_of(one) == predicted[:1]
    assert one.json()["artifact"] == "onnxruntime-int8" and one.json()["images"][0]["inference_ms"] > 0


def test_an_artifact_and_a_number_of_classes_can_be_asked_for(server, files) -> None:
    answer = post(server, files={"file": files[0].read_bytes()}, params={"artifact": "onnxruntime-fp32", "top": 3})
    assert answer.json()["artifact"] == "onnxruntime-fp32"
    top = answer.json()["images"][0]["top"]
    assert len(top) == 3 and top[0]["probability"] >= top[1]["probability"] >= top[2]["probability"]
    names = {model["name"]: model for model in httpx.get(server + "v1/models").json()["models"]}
    assert set(names) == {"onnxruntime-fp32", "onnxruntime-int8"} and names["onnxruntime-int8"]["default"]


def test_a_broken_image_among_good_ones_is_an_entry_with_an_error(server, files, predicted) -> None:
    parts = [("file", files[0].read_bytes()), ("file", b"no image"), ("file", files[1].read_bytes())]
    images = post(server, files=parts).json()["images"]
    assert [image.get("top", [{}])[0].get("class") for image in images] == [predicted[0], None, predicted[1]]
    assert "can't be read" in images[1]["error"]["what"]


def _bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "png")
    return buffer.getvalue()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


PNG, NPY, JSON = ({"content-type": t} for t in ("image/png", "application/x-npy", "application/json"))


@pytest.mark.parametrize(
    ("status", "words", "request_"),
    [
        (415, "text/plain", {"content": b"x", "headers": {"content-type": "text/plain"}}),
        (415, "none", {"content": b"x"}),
        (400, "not JSON", {"content": b"[[", "headers": JSON}),
        (400, "not JSON", {"content": b"[" * 100_000, "headers": JSON}),
        (422, "list 'images'", {"json": {"images": "abc"}}),
        (422, "not base64", {"json": {"images": ["%%%"]}}),
        (422, "no image", {"json": {"images": []}}),
        (422, "'top'", {"json": {"images": ["aa=="], "top": -1}}),
        (400, "form", {"content": b"--x\r\nbroken", "headers": {"content-type": "multipart/form-data"}}),
        (422, "can't be read", {"content": b"", "headers": PNG}),
        (413, "pixels", {"content": _bomb(), "headers": PNG}),
        (413, "too large", {"content": b"\0" * (17 * 2**20), "headers": PNG}),
        (422, ".npy", {"content": b"\x93NUMPY", "headers": NPY}),
        (422, ".npy", {"content": _npy(np.array([{}])), "headers": NPY}),
        (422, "uint8", {"content": _npy(np.zeros((1, SIZE, SIZE, 3), np.float32)), "headers": NPY}),
        (422, "takes", {"content": _npy(np.zeros((1, 8, 8, 3), np.uint8)), "headers": NPY}),
        (413, "300 images", {"content": _npy(np.zeros((300, 2, 2, 3), np.uint8)), "headers": NPY}),
        (404, "no artifact", {"content": b"x", "headers": PNG, "params": {"artifact": "../secret"}}),
    ],
)
def test_a_bad_request_is_told_in_words(server, status, words, request_) -> None:
    answer = post(server, **request_)
    error = answer.json()["error"]
    assert answer.status_code == status, answer.text
    assert words in " ".join(error.values()) and "Traceback" not in answer.text


def test_other_pages(server) -> None:
    assert httpx.get(server + "v2").status_code == 404 and "openapi" in httpx.get(server + "v2").text
    assert httpx.get(server + "v1/predict").status_code == 405
    assert httpx.get(server + "healthz").json() == {"status": "ok"}
    assert "/v1/predict" in httpx.get(server + "openapi.json").json()["paths"]
    page = httpx.get(server)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text + httpx.get(server + "page.css").text
    assert page.headers["x-content-type-options"] == "nosniff"
    counted = httpx.get(server + "metrics").text
    assert 'vitedge_requests_total{path="/v1/predict",status="200"}' in counted
    assert 'vitedge_requests_total{path="other",status="404"} 2.0' in counted


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_answer_does_not_wait_for_the_clients_acknowledgement(host) -> None:
    # Nagle's algorithm would hold each answer of a kept connection for some 40 ms.
    async def connect(bound: socket.socket) -> int:
        told: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        class Told(asyncio.Protocol):
            def connection_made(self, transport) -> None:
                accepted = transport.get_extra_info("socket")
                told.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

        async with await asyncio.get_running_loop().create_server(Told, sock=bound):
            _, writer = await asyncio.open_connection(*bound.getsockname()[:2])
            answer = await asyncio.wait_for(told, 10)
            writer.close()
        return answer

    try:
        bound = bind(ServeOptions(host=host, port=0))
    except VitedgeError as error:
        pytest.skip(f"no {host} here: {error}")
    assert asyncio.run(connect(bound)) == 1


def test_a_token_guards_the_api(served_run, files) -> None:
    with serving(served_run, "--token", "correct horse") as (url, _):
        wait_until_ready(url, httpx)  # health needs none
        body = {"files": {"file": files[0].read_bytes()}}
        assert post(url, **body).status_code == 401 == httpx.get(url + "metrics").status_code
        assert post(url, **body, headers={"authorization": "Bearer wrong"}).status_code == 401
        assert post(url, **body, headers={"authorization": "Bearer correct horse"}).status_code == 200


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def _worker(pid: int) -> int:
    """The process that holds the artifact; waits where it is being started again."""
    while True:
        for child in _children(pid):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                return child
        time.sleep(0.05)


def test_a_killed_worker_restarts_and_no_request_is_lost(served_run, files, predicted) -> None:
    with serving(served_run, "--queue", 1000) as (url, process):
        wait_until_ready(url, httpx)
        stop = threading.Event()

        def kill() -> None:
            for _ in range(3):
                time.sleep(0.3)
                wait_until_ready(url, httpx)
                os.kill(_worker(process.pid), signal.SIGKILL)
            stop.set()

        killer = threading.Thread(target=kill)
        killer.start()

        def ask(number: int) -> bool:
            with httpx.Client() as client:
                file = files[number % len(files)]
                answer = client.post(url + "v1/predict", files={"file": file.read_bytes()}, timeout=60)
                return classes_of(answer) == [predicted[number % len(files)]]

        answers = []
        with ThreadPoolExecutor(4) as pool:
            while not stop.is_set():
                answers += list(pool.map(ask, range(40)))
        killer.join()
        assert all(answers)
        assert 'vitedge_worker_restarts_total{artifact="onnxruntime-int8"}' in httpx.get(url + "metrics").text


def test_slow_and_broken_clients_do_not_stop_others(server, files, predicted) -> None:
    host, port = server.removeprefix("http://").rstrip("/").split(":")
    stalled = []
    for start in (b"POST /v1/predict HTTP/1.1\r\n", b"", b"\x16\x03\x01garbage\r\n\r\n"):
        sock = socket.create_connection((host, int(port)))
        sock.sendall(start)
        stalled.append(sock)
    head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 5000\r\n\r\nhalf"
    for _ in range(20):
        sock = socket.create_connection((host, int(port)))
        sock.sendall(head)
        stalled.append(sock)
    assert classes_of(post(server, files={"file": files[0].read_bytes()})) == predicted[:1]
    for sock in stalled:
        sock.close()
    assert classes_of(post(server, files={"file": files[1].read_bytes()})) == predicted[1:2]


def test_a_request_that_takes_too_long_is_ended(served_run) -> None:
    with serving(served_run, "--timeout-s", 0.5) as (url, _):
        wait_until_ready(url, httpx)

        def slowly():
            yield b"a"
            time.sleep(1.5)
            yield b"b"

        answer = post(url, content=slowly(), headers=PNG)
        assert answer.status_code == 503 and "too long" in answer.text


def test_sigterm_answers_what_waits_and_leaves_no_process(served_run, files) -> None:
    with serving(served_run, "--max-wait-ms", 1000, "--max-batch", 100) as (url, process):
        wait_until_ready(url, httpx)
        worker = _worker(process.pid)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(post, url, files={"file": files[0].read_bytes()})
            time.sleep(0.3)  # it waits for others of its batch
            process.send_signal(signal.SIGTERM)
            assert answer.result().status_code == 200
        assert process.wait(20) in (0, 143, -signal.SIGTERM)
        assert not Path(f"/proc/{worker}").exists()


def test_wrong_calls_are_told_in_words(served_run, tmp_path) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    assert "can't listen" in vitedge("serve", "--run", served_run, "--port", port, code=1).stderr
    taken.close()
    assert "no run" in vitedge("serve", "--run", tmp_path / "none", code=2).stderr
    assert "no artifact is called" in vitedge("serve", "--run", served_run, "--artifact", "gpu", code=2).stderr.lower()
    assert "port" in vitedge("serve", "--run", served_run, "--port", 99999, code=2).stderr
