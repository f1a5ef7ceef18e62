from __future__ import annotations

from live_server import served_run, server  # noqa: F401
