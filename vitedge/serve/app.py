"""The web application: a page at `/`, the API below `/v1`, `/healthz` and `/metrics`."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.resources import files

import numpy as np
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitedge import __version__
from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.serve.batcher import Busy
from vitedge.serve.body import Asked, Refused, prepare, read_body
from vitedge.serve.measures import Measures
from vitedge.serve.models import Models
from vitedge.serve.options import ServeOptions
from vitedge.serve.worker import Output

# Nothing from outside, no code but the page's own.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_STATIC = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}


class _TooLarge(Exception):
    pass


@dataclass(frozen=True)
class ListedModel:
    """One artifact of `/v1/models`; `device`: where it runs, None where it is not open yet."""

    name: str
    target: str
    precision: str
    size_mib: float
    device: str | None
    attention: bool
    default: bool


@dataclass(frozen=True)
class ModelList:
    """`/v1/models`: the artifacts, and what all of them have in common; `classes`: how many, None of an embedding."""

    vitedge: str
    models: list[ListedModel]
    classes: int | None
    activation: str
    preprocess: dict[str, object]


class LimitBody:
    """Ends a request whose body is larger than `limit` bytes with 413, whatever its headers say."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        seen, started = 0, False

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limit:
                raise _TooLarge
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            length = dict(scope["headers"]).get(b"content-length", b"0")
            if not length.isdigit() or int(length) > self.limit:
                raise _TooLarge
            await self.app(scope, limited, watched)
        except _TooLarge:
            if started:
                raise
            answer = _error(413, "The request is too large.", f"At most {self.limit:,} bytes are taken.", "Send less.")
            answer.headers["connection"] = "close"
            await answer(scope, receive, send)


class Count:
    """Counts and times the requests of each route; its own ASGI, for Starlette's `middleware("http")` starts a group
    of tasks a request."""

    def __init__(self, app: ASGIApp, measures: Measures) -> None:
        self.app, self.measures = app, measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                # The router writes its route into the scope that it was given.
                path = getattr(scope.get("route"), "path", "other")
                self.measures.requests.labels(path=path, status=message["status"]).inc()
                self.measures.seconds.labels(path=path).observe(time.perf_counter() - started)
                message["headers"] = [*message.get("headers", ()), (b"x-content-type-options", b"nosniff")]
            await send(message)

        await self.app(scope, receive, counted)


def _error(
    status: int, what: str, why: str = "", todo: str = "", headers: dict[str, str] | None = None
) -> JSONResponse:
    return JSONResponse({"error": {"what": what, "why": why, "todo": todo}}, status, headers)


def make_app(open_models: Callable[[Measures], Models], options: ServeOptions) -> FastAPI:
    """The application. `open_models` is called when it starts, so that what it opens ends with it."""
    measures = Measures()
    # Decoding releases the interpreter's lock; more threads than this only compete with the artifact.
    decoders = ThreadPoolExecutor(4, "decode")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        models = await asyncio.to_thread(open_models, measures)
        app.state.models = models
        try:
            await asyncio.to_thread(models.batcher, models.default)
            yield
        finally:
            await asyncio.to_thread(models.close)
            decoders.shutdown(cancel_futures=True)

    app = FastAPI(title="vitedge", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(LimitBody, limit=int(options.max_mib * 2**20))  # type: ignore[arg-type]
    app.add_middleware(Count, measures=measures)  # type: ignore[arg-type]

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return _error(error.status, error.what, error.why, error.todo, error.headers)

    @app.exception_handler(404)
    async def unknown(request: Request, _: Exception) -> JSONResponse:
        return _error(404, f"There is no '{request.url.path}'.", "", "See /openapi.json.")

    @app.exception_handler(405)
    async def wrong_method(request: Request, _: Exception) -> JSONResponse:
        return _error(405, f"'{request.url.path}' does not take {request.method}.", "", "See /openapi.json.")

    # Not for what it awaits: FastAPI sends a plain function to a thread, which costs more than the function.
    async def authorised(request: Request) -> None:
        if options.token is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if not hmac.compare_digest(given, options.token.encode()):
            raise Refused(
                401,
                "The request has no valid token.",
                "The server was started with --token.",
                "Send 'Authorization: Bearer TOKEN'.",
                {"WWW-Authenticate": "Bearer"},
            )

    guarded = [Depends(authorised)]

    def asset(name: str) -> Callable[[], Awaitable[Response]]:
        async def read() -> Response:
            text = files("vitedge.serve").joinpath("static").joinpath(name).read_text(encoding="utf-8")
            return Response(text, media_type=_STATIC[name], headers={"Content-Security-Policy": _POLICY})

        return read

    for route, name in (("/", "page.html"), ("/page.css", "page.css"), ("/page.js", "page.js")):
        app.get(route, include_in_schema=False)(asset(name))

    @app.get("/healthz", summary="200 where the default artifact answers, else 503")
    async def healthz(request: Request) -> Response:
        models: Models = request.app.state.models
        opened = models.open.get(models.default)
        good = opened is not None and opened.healthy and not opened.closing
        return JSONResponse({"status": "ok" if good else "unavailable"}, 200 if good else 503)

    @app.get("/metrics", dependencies=guarded, summary="Prometheus metrics")
    async def metrics(request: Request) -> Response:
        models: Models = request.app.state.models
        for name, batcher in models.open.items():
            measures.waiting.labels(artifact=name).set(batcher.waiting)
        return Response(generate_latest(measures.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models", dependencies=guarded, summary="The artifacts that can be asked for")
    async def list_models(request: Request) -> ModelList:
        models: Models = request.app.state.models
        rows = [
            ListedModel(
                name=o.name,
                target=o.target,
                precision=o.precision,
                size_mib=round(o.size_mib, 2),
                device=models.device(o.name),
                attention=o.attends,
                default=o.name == models.default,
            )
            for o in models.offered.values()
        ]
        return ModelList(__version__, rows, models.outputs, models.activation, models.preprocess.to_dict())

    @app.post("/v1/predict", dependencies=guarded, openapi_extra=_PREDICT_BODY, summary="Classify images")
    async def predict(request: Request) -> Response:
        try:
            return await asyncio.wait_for(_predict(request), options.timeout_s)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it; nginx's number in the metrics
        except asyncio.TimeoutError:
            return _error(
                503,
                "The request took too long.",
                f"It was ended after {options.timeout_s:g} s.",
                "Send fewer images, or try again later.",
                {"Retry-After": "1"},
            )

    async def _predict(request: Request) -> Response:
        models: Models = request.app.state.models
        loop = asyncio.get_running_loop()
        asked = await read_body(request, int(options.max_mib * 2**20))
        name = asked.artifact or models.default
        if name not in models.offered:
            raise Refused(404, f"There is no artifact '{name[:80]}'.", "", f"Ask for {', '.join(models.offered)}.")
        started = time.perf_counter()
        ready = await _prepare(loop, asked, models)
        decoded_ms = (time.perf_counter() - started) * 1000
        try:
            opened = models.open.get(name)
            batcher = opened if opened is not None else await asyncio.to_thread(models.batcher, name)
        except VitedgeError as error:
            raise Refused(503, error.what, error.why, error.todo) from error
        pixels = [one for one in ready if isinstance(one, np.ndarray)]
        if not pixels and isinstance(ready[0], Refused):
            raise ready[0]
        try:
            futures = batcher.submit(pixels)
        except Busy:
            raise Refused(
                429,
                "The queue is full.",
                f"{batcher.waiting} images wait; {batcher.limit} may.",
                "Try again.",
                {"Retry-After": "1"},
            ) from None
        try:
            answers = iter([await asyncio.wrap_future(future) for future in futures])
        except asyncio.CancelledError:
            for future in futures:
                future.cancel()
            raise
        except Exception as error:
            raise Refused(503, "The artifact failed.", str(error)[:300], "Try again.", {"Retry-After": "1"}) from error
        images: list[dict[str, object]] = []
        for one in ready:
            if isinstance(one, Refused):
                images.append({"error": {"what": one.what, "why": one.why, "todo": one.todo}})
                continue
            said, waited, spent = next(answers)
            entry = models.says(said.logits, asked.top) | _attention(said, asked)
            images.append(entry | {"queue_ms": round(waited * 1000, 3), "inference_ms": round(spent * 1000, 3)})
        return JSONResponse(
            {"artifact": name, "device": models.device(name), "activation": models.activation}
            | {"decode_ms": round(decoded_ms, 3), "images": images}
        )

    async def _prepare(
        loop: asyncio.AbstractEventLoop, asked: Asked, models: Models
    ) -> list[np.ndarray] | list[np.ndarray | Refused]:
        if asked.prepared is not None:
            shape = (*models.preprocess.size, models.preprocess.bands)
            if asked.prepared.shape[1:] != shape:
                raise Refused(422, f"The images are {asked.prepared.shape[1:]}.", "", f"The model takes {shape}.")
            return list(asked.prepared)
        one = partial(_prepared, preprocess=models.preprocess, max_pixels=options.max_pixels)
        return await asyncio.gather(*(loop.run_in_executor(decoders, one, data) for data in asked.encoded))

    return app


def _attention(said: Output, asked: Asked) -> dict[str, object]:
    """The map, row by row from the top left, where it was asked for and the artifact has one."""
    if not asked.attention or said.attention is None:
        return {}
    rows, columns = said.attention.shape
    # Six digits: what a patch adds lies between 0 and 1, and of a thousand patches around 0.001.
    values = [round(float(value), 6) for value in said.attention.ravel()]
    return {"attention": {"rows": rows, "columns": columns, "values": values}}


def _prepared(data: bytes, *, preprocess: Preprocess, max_pixels: int) -> np.ndarray | Refused:
    try:
        return prepare(data, preprocess, max_pixels)
    except Refused as error:
        return error


# In OpenAPI's words.
_PREDICT_BODY: dict[str, object] = {
    "parameters": [
        {"name": "artifact", "in": "query", "schema": {"type": "string"}, "description": "Name from /v1/models."},
        {"name": "top", "in": "query", "schema": {"type": "integer", "default": 5}, "description": "Classes an image."},
        {
            "name": "attention",
            "in": "query",
            "schema": {"type": "boolean", "default": False},
            "description": "Also the attention map, of an artifact from `vitedge build --attention-output`.",
        },
    ],
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {
                        "images": {"type": "array", "items": {"type": "string", "description": "base64"}},
                        "top": {"type": "integer", "default": 5},
                        "artifact": {"type": "string"},
                        "attention": {"type": "boolean", "default": False},
                    },
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/x-npy": {"schema": {"type": "string", "format": "binary"}},
        },
    },
}
