"""What a server is asked to do."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vitedge.options import EXPERT, Cli, Options

TEXT_EMBEDDINGS = "FILE.npz with names and embeddings of classes: zero-shot classes of a model that gives embeddings."


class ServeOptions(Options):
    """Where a server listens, and how much it takes."""

    artifact: str | None = Field(None, description="Folder below build/. (default: the smallest precision that runs)")
    text_embeddings: str | None = Field(None, description=TEXT_EMBEDDINGS)
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for the whole network.")
    port: int = Field(8000, ge=0, le=65535, description="Port; 0 for a free one.")
    max_batch: int = Field(8, ge=1, le=256, description="Images of waiting requests that are inferred together.")
    max_wait_ms: float = Field(2.0, ge=0, le=1000, description="Longest wait for more images of a batch.")
    queue: int = Field(64, ge=1, le=65536, description="Images that may wait; beyond, requests get status 429.")
    # Never saved: a run folder is handed on.
    token: Annotated[str | None, Cli(local=True)] = Field(
        None, min_length=8, description="Bearer token that requests to the API must carry."
    )
    threads: int | None = Field(None, ge=1, le=1024, description="Processor threads of the runner.")
    timeout_s: Annotated[float, EXPERT] = Field(30.0, gt=0, le=3600, description="Longest time of a request.")
    max_mib: Annotated[float, EXPERT] = Field(16.0, gt=0, le=1024, description="Largest request body.")
    max_pixels: Annotated[int, EXPERT] = Field(
        50_000_000, ge=1, le=2**27, description="Largest image, in pixels, before it is decoded."
    )
