"""A server under load against the same artifact without one: throughput, tail latency, memory, answers lost.

    python benchmarks/serve_load.py --run RUN --requests 100000 [--clients 4] [--images 1]

Clients are processes with one connection each and send prepared pixels (application/x-npy), so that the server is
measured and not the decoding of JPEG. The base is `bench`'s throughput scenario of the same artifact, in turns with
the server: half of it before, half after.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def client(port: int, bodies: list[bytes], wanted: list[int], requests: int, offset: int, out) -> None:
    """Sends its requests one after the other; tells latencies, wrong and lost answers, and refusals."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    latencies, wrong, lost, refused = [], 0, 0, 0
    for number in range(requests):
        index = (offset + number) % len(bodies)
        started = time.perf_counter()
        try:
            connection.request("POST", "/v1/predict?top=1", bodies[index], {"Content-Type": "application/x-npy"})
            answer = connection.getresponse()
            document = json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError):
            lost += 1
            connection.close()
            continue
        latencies.append(time.perf_counter() - started)
        refused += answer.status == 429
        if answer.status == 200:
            wrong += document["images"][0]["top"][0]["index"] != wanted[index]
    out.put((latencies, wrong, lost, refused))


def bench_ips(run: Path, artifact: str) -> float:
    """Images a second of the throughput scenario."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.json"
        command = [sys.executable, "-m", "vitedge", "bench", "--run", run, "--only", artifact, "--no-accuracy"]
        command += ["--scenario", "throughput", "--seconds", 5, "--json", file]
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
        rows = json.loads(file.read_text())["rows"]
        return float(next(row["throughput_ips"] for row in rows if row["artifact"] == artifact))


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--artifact", default="onnxruntime-int8")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--images", type=int, default=1, help="Images a request.")
    parser.add_argument("--port", type=int, default=8799)
    given = parser.parse_args()

    from vitedge import targets
    from vitedge.bench.from_bundle import find_artifacts, find_preprocess
    from vitedge.bundle import Bundle

    bundle = Bundle.open(given.run)
    artifact = find_artifacts(bundle, [given.artifact])[0].artifact
    preprocess = find_preprocess(bundle)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (16, given.images, *preprocess.size, preprocess.bands), np.uint8)
    runner = targets.get(artifact.target).open(artifact.path, artifact.metadata)
    wanted = [int(runner.infer(one)[0].argmax()) for one in pixels]
    runner.close()
    bodies = []
    for one in pixels:
        buffer = io.BytesIO()
        np.save(buffer, one)
        bodies.append(buffer.getvalue())

    base = [bench_ips(given.run, given.artifact)]
    command = [sys.executable, "-m", "vitedge", "serve", "--run", given.run, "--artifact", given.artifact]
    server = subprocess.Popen([*map(str, command), "--port", str(given.port), "--queue", "1024"])
    try:
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", given.port, timeout=5)
            try:
                connection.request("GET", "/healthz")
                if connection.getresponse().status == 200:
                    break
            except OSError:
                time.sleep(0.2)
        out: multiprocessing.Queue = multiprocessing.Queue()
        each = given.requests // given.clients
        warm = multiprocessing.Process(target=client, args=(given.port, bodies, wanted, 200, 0, out))
        warm.start()
        out.get()
        before = resident_mib(server.pid)
        started = time.perf_counter()
        clients = [
            multiprocessing.Process(target=client, args=(given.port, bodies, wanted, each, k * 5, out))
            for k in range(given.clients)
        ]
        for process in clients:
            process.start()
        results = [out.get() for _ in clients]
        taken = time.perf_counter() - started
        after = resident_mib(server.pid)
    finally:
        server.terminate()
        server.wait()
    base.append(bench_ips(given.run, given.artifact))
    latencies = np.concatenate([result[0] for result in results]) * 1000
    ips = len(latencies) * given.images / taken
    print(
        json.dumps(
            {
                "artifact": given.artifact,
                "requests": given.requests,
                "clients": given.clients,
                "images_per_request": given.images,
                "server_ips": round(ips, 1),
                "bench_ips": [round(one, 1) for one in base],
                "ratio": round(ips / float(np.mean(base)), 3),
                "p50_ms": round(float(np.percentile(latencies, 50)), 2),
                "p99_ms": round(float(np.percentile(latencies, 99)), 2),
                "wrong": sum(result[1] for result in results),
                "lost": sum(result[2] for result in results),
                "refused": sum(result[3] for result in results),
                "server_rss_mib": [round(before, 1), round(after, 1)],
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
