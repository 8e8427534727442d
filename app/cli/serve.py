"""`medpix serve`: the API and the pages."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from app.cli.common import DataOption, HostOption, PortOption, load_settings

if TYPE_CHECKING:
    from app.core.settings import Settings

_SHUTDOWN_S: Final = 30


def serve(data: DataOption = None, port: PortOption = None, host: HostOption = None) -> None:
    """Serve the API and the pages on data that were loaded before."""
    from app.cli.port import check_port

    settings = load_settings(data, port=port, host=host)
    check_port(settings)
    if settings.mongo_uri is None:
        from app.cli.up import run_service

        run_service(settings, seed=False, train=False)
        return
    run_server(settings)
    # Threads of libraries that still load a model would hold the process for as long as that takes.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def run_server(settings: "Settings") -> None:
    """Serve in this process until SIGINT or SIGTERM; accepted requests are answered first.

    Raises:
        app.core.exceptions.UserError: MEDPIX_MODEL_MODALITY or MEDPIX_MODEL_LOCATION names no such model.
    """
    import uvicorn

    from app.api.factory import create_app

    check_selected_models(settings)
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


def check_selected_models(settings: "Settings") -> None:
    """Refuse a setting that names a model which no training can make.

    Raises:
        app.core.settings.ConfigurationError: names the setting, and the models that can be named.
    """
    from app.core.settings import ConfigurationError

    selected = {"modality": settings.model_modality, "location": settings.model_location}
    if not any(selected.values()):
        return
    from ml.training.train import MODEL_SPECS

    for task, name in selected.items():
        known = [each for each, spec in MODEL_SPECS.items() if task in spec.tasks]
        if name is not None and name not in known:
            raise ConfigurationError(
                f"MEDPIX_MODEL_{task.upper()}={name[:80]!r}: no model of this name answers {task}. "
                f"Use one of {', '.join(known)}, or leave it unset for the best on dev."
            )


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
