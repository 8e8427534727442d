"""`medpix serve`: the API and the pages."""

import asyncio
import logging
import os
import signal
from typing import TYPE_CHECKING, Final, NoReturn

from app.cli.common import DataOption, HostOption, PortOption, load_settings

if TYPE_CHECKING:
    import uvicorn

    from app.core.settings import Settings

_SHUTDOWN_S: Final = 30


def serve(data: DataOption = None, port: PortOption = None, host: HostOption = None) -> None:
    """Serve the API and the pages on data that were loaded before."""
    from app.cli.port import check_port

    settings = load_settings(data, port=port, host=host)
    check_port(settings)
    check_selected_models(settings)
    if settings.mongo_uri is None:
        from app.cli.up import run_service

        run_service(settings, seed=False, train=False)
        return
    run_server(settings)


def run_server(settings: "Settings") -> None:
    """Serve until SIGINT or SIGTERM, answer the accepted requests, and end this process."""
    import uvicorn

    from app.api.factory import create_app
    from app.api.http_protocol import HttpProtocol

    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        http=HttpProtocol,
        log_level=settings.log_level,
        timeout_graceful_shutdown=_SHUTDOWN_S,
        access_log=False,
        server_header=False,
        log_config=None,  # the command line decides where log lines go
    )
    server = uvicorn.Server(config)
    # Uvicorn stops on a signal and then raises it again, for those who started it; here nothing is left to do.
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, lambda *_: None)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_serve_and_exit(server))


async def _serve_and_exit(server: "uvicorn.Server") -> NoReturn:
    """End the process with the server: the event loop would first wait for the threads that still load models."""
    await server.serve()
    logging.shutdown()
    os._exit(0)


def check_selected_models(settings: "Settings") -> None:
    """Refuse a setting that names a model which no training can make.

    Raises:
        app.core.settings.ConfigurationError: names the setting, and the models that can be named.
    """
    from app.core.settings import ConfigurationError
    from app.serving.model_selection import selection_error

    for task, name in settings.selected_models.items():
        if (fault := selection_error(task, (), name)) is not None:
            raise ConfigurationError(fault)
