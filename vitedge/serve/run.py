"""The server's life: options checked, address bound, requests answered until a signal, everything ended."""

from __future__ import annotations

import errno
import socket
from functools import partial
from pathlib import Path

from vitedge.errors import VitedgeError, missing_package
from vitedge.reporter import Reporter
from vitedge.serve.options import ServeOptions


def serve(run: Path, options: ServeOptions, reporter: Reporter) -> None:
    """Serves until SIGINT or SIGTERM; requests that are being answered are finished first.

    Raises VitedgeError where a package is missing, no artifact runs here, or the address is taken.
    """
    try:
        import uvicorn

        from vitedge.serve.app import make_app
        from vitedge.serve.measures import Measures
        from vitedge.serve.models import Models
    except ModuleNotFoundError as error:
        raise missing_package(error.name or "fastapi", "serve", "`vitedge serve`") from error
    bound = bind(options)
    host, port = bound.getsockname()[:2]
    measures_checked = Models(run, options, Measures())  # a wrong call fails here, not inside the server
    app = make_app(partial(Models, run, options), options)
    url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}/"
    reporter.info(f"{measures_checked.default} on {url} (API: {url}v1/predict); Ctrl-C ends it")
    if host not in ("127.0.0.1", "::1") and options.token is None:
        reporter.warn(f"listening on {host}: anybody who reaches this machine can use it; --token asks for a token")
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=int(options.timeout_s) + 5,
        h11_max_incomplete_event_size=64 * 1024,
    )
    server = uvicorn.Server(config)
    with bound:
        server.run(sockets=[bound])
    if not server.started:
        raise VitedgeError("The server did not start.", "Its log above says why.", "", exit_code=1)


def bind(options: ServeOptions) -> socket.socket:
    """A socket at the address of the options. Raises VitedgeError where it is taken or not this machine's."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the socket names TCP; with it, each answer after a connection's
    # first waits for the client's delayed acknowledgement, some 40 ms.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((options.host, options.port))
    except (OSError, OverflowError) as error:
        bound.close()
        number = getattr(error, "errno", None)
        todo = "Choose another with --port (0 for a free one)." if number == errno.EADDRINUSE else "Check --host."
        raise VitedgeError(
            f"The server can't listen on {options.host}:{options.port}.", f"{error}.", todo, exit_code=1
        ) from error
    return bound
