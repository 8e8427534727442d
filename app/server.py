"""Runs the application under uvicorn."""

import uvicorn

from app.config import Settings
from app.main import create_app

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
    )
    uvicorn.Server(config).run()
