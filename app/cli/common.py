"""Shared by the commands: consoles, options, settings, log format."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from app.core.settings import Settings

# Paths and messages may hold square brackets, which are no markup.
console = Console(markup=False)
errors = Console(stderr=True, markup=False)

DataOption = Annotated[Path | None, typer.Option("--data", help="MedPix 2.0 folder; default: MEDPIX_DATA_DIR")]
HostOption = Annotated[str | None, typer.Option("--host", help="Address to listen on; default: MEDPIX_HOST")]
PortOption = Annotated[
    int | None, typer.Option("--port", min=1, max=65535, help="Port to listen on; default: MEDPIX_PORT")
]
DeviceOption = Annotated[Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="Device to compute on")]


def fail(message: str) -> NoReturn:
    """Print an error that the user can correct, and end with exit code 1."""
    errors.print(Text("error:", "bold red"), message, highlight=False, soft_wrap=True)
    sys.exit(1)


def load_settings(data: Path | None = None, **overrides: Any) -> "Settings":
    """The settings of this command, and the log format that they name.

    Args:
        data: the dataset's folder, instead of the setting.
        **overrides: further settings; None leaves a setting as it is.

    Raises:
        app.core.settings.ConfigurationError: a setting cannot be used.
    """
    from app.core import settings as core
    from app.core.logs import configure_logging

    values = {name: value for name, value in {"data_dir": data, **overrides}.items() if value is not None}
    settings = core.load_settings(**values)
    configure_logging(settings)
    for line in core.unknown_variables():
        errors.print(Text("warning:", "bold yellow"), line, highlight=False, soft_wrap=True)
    return settings
