"""What a server is asked to do."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ServeOptions(BaseModel):
    """Each field is a flag of `vitedge serve`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for the whole network.")
    port: int = Field(8000, ge=0, le=65535, description="Port; 0 for a free one.")
    max_batch: int = Field(8, ge=1, le=256, description="Images of waiting requests that are inferred together.")
    max_wait_ms: float = Field(2.0, ge=0, le=1000, description="Longest wait for more images of a batch.")
    queue: int = Field(64, ge=1, le=65536, description="Images that may wait; beyond, requests get 429.")
    timeout_s: float = Field(30.0, gt=0, le=3600, description="Longest time of a request, from its body to its answer.")
    max_mib: float = Field(16.0, gt=0, le=1024, description="Largest request body.")
    max_pixels: int = Field(50_000_000, ge=1, le=2**30, description="Largest image, in pixels, before it is decoded.")
    threads: int | None = Field(None, ge=1, le=1024, description="Processor threads of the runner.")
    token: str | None = Field(None, min_length=8, description="Bearer token that every request of the API must carry.")
