"""What /metrics tells: Prometheus counters and histograms of one server."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Measures:
    """The metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter("vitedge_requests", "Requests answered.", ["path", "status"], registry=r)
        self.seconds = Histogram(
            "vitedge_request_seconds", "Request to answer.", ["path"], buckets=_SECONDS, registry=r
        )
        self.images = Counter("vitedge_images", "Images inferred.", ["artifact"], registry=r)
        self.inference = Histogram(
            "vitedge_inference_seconds", "One batch through the artifact.", ["artifact"], buckets=_SECONDS, registry=r
        )
        self.batches = Histogram(
            "vitedge_batch_size", "Images a batch.", ["artifact"], buckets=(1, 2, 4, 8, 16, 32, 64), registry=r
        )
        self.restarts = Counter("vitedge_worker_restarts", "Worker processes started again.", ["artifact"], registry=r)
        self.waiting = Gauge("vitedge_queue_images", "Images waiting or in the worker.", ["artifact"], registry=r)

    def batch(self, artifact: str) -> Callable[[int, float], None]:
        """What a batcher of that artifact calls with the size and the seconds of a batch."""

        def observe(images: int, seconds: float) -> None:
            self.images.labels(artifact=artifact).inc(images)
            self.batches.labels(artifact=artifact).observe(images)
            self.inference.labels(artifact=artifact).observe(seconds)

        return observe
