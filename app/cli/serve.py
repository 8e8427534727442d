"""Runs the application under uvicorn."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from app.api.factory import create_app
from app.core.settings import Settings

_SHUTDOWN_S = 30


def run_server(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM; what was accepted is answered first."""
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level,
        timeout_graceful_shutdown=_SHUTDOWN_S,
        access_log=False,
        server_header=False,
        log_config=None,  # the command line decides where log lines go
    )
    with _signals_end_here():
        uvicorn.Server(config).run()


@contextmanager
def _signals_end_here() -> Iterator[None]:
    """Uvicorn stops on a signal and then raises it again; what started the server must still be cleaned up."""
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(kind, lambda *_: None) for kind in kinds]
    try:
        yield
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)
