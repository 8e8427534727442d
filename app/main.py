"""The `medpix` command; each subcommand is a module of ``app.cli``."""

import errno
import signal
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from app.cli.common import fail
from app.cli.doctor import doctor
from app.cli.evaluate import evaluate
from app.cli.export import export
from app.cli.fetch import fetch
from app.cli.predict import predict
from app.cli.seed import seed
from app.cli.serve import serve
from app.cli.train import train
from app.cli.up import up
from app.core.exceptions import UserError

_EXAMPLES = (
    "Examples:",
    "medpix up --data ~/MedPix-2.0 --port 8080",
    "medpix train modality --weights scratch",
    "medpix evaluate",
    "medpix predict ~/scans --out predictions.parquet",
    "medpix doctor",
    "medpix export ct.parquet --where modality=CT --where age__gte=60",
)

# Faults of the machine that the user can correct; any other OSError is a fault of the program.
_SYSTEM_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="MedPix 2.0 as a service: cases, images, and predictions of modality and anatomical location.",
    epilog="\n\n".join(_EXAMPLES),
)
for command in (up, fetch, seed, train, evaluate, predict, export, serve, doctor):
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medpix {version('medpix-service')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version")
    ] = False,
) -> None:
    """Options of the command itself."""
    del show_version


def main() -> None:
    """Run the command line; a fault that the user can correct ends it with its message and exit code 1."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # unwind: servers are stopped
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except UserError as error:
        fail(str(error))
    except OSError as error:
        if error.errno not in _SYSTEM_FAULTS:
            raise
        fail(f"{error.strerror}: {error.filename or 'this process'}")
    except Exception as error:
        message = _explain_database_error(error)
        if message is None:
            raise
        fail(message)


def _explain_database_error(error: Exception) -> str | None:
    from pymongo.errors import ConnectionFailure, PyMongoError  # noqa: PLC0415 - `medpix --help` needs no driver

    from app.data.client import explain_refusal, reason_of  # noqa: PLC0415 - it imports the driver

    match error:
        case ConnectionFailure():
            reason = reason_of(error)
            return f"MongoDB cannot be reached: {reason}. Is it running, and is MEDPIX_MONGO_URI its address?"
        case PyMongoError():
            return explain_refusal(error)
    return None


if __name__ == "__main__":
    main()
