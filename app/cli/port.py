"""Tells whether the port can be used, and who has it."""

import errno
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from app.core.exceptions import UserError
from app.core.settings import Settings

_LISTEN: Final = "0A"


class PortInUseError(UserError):
    """The service cannot listen on its address."""


def check_port(settings: Settings) -> None:
    """Say that the port is taken at once, and not after the database was started.

    Raises:
        PortInUseError: names the process that has the port, or what is wrong with MEDPIX_HOST.
    """
    try:
        addresses = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise PortInUseError(_not_ours(settings, error)) from error
    for family, kind, protocol, _, address in addresses:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            explain = _not_ours if error.errno == errno.EADDRNOTAVAIL else _explain
            raise PortInUseError(explain(settings, error)) from error


def _not_ours(settings: Settings, error: OSError) -> str:
    return (
        f"MEDPIX_HOST={settings.host} is not an address of this machine ({error.strerror}). "
        "Use 127.0.0.1, 0.0.0.0, ::1 or :: instead."
    )


def _explain(settings: Settings, error: OSError) -> str:
    if error.errno == errno.EACCES:
        return f"Port {settings.port} is for root alone. Set MEDPIX_PORT to 1024 or more."
    holder = port_holder(settings.port)
    if holder is not None:
        pid, command = holder
        return (
            f"Port {settings.port} of {settings.host} is used by process {pid} ({command}). "
            f"Stop it with `kill {pid}`, or set MEDPIX_PORT to another port."
        )
    return (
        f"Port {settings.port} of {settings.host} cannot be used ({error.strerror}). "
        "Stop the program that has it, or set MEDPIX_PORT or MEDPIX_HOST to another."
    )


def port_holder(port: int) -> tuple[int, str] | None:
    """Process id and command line of who listens on a port; None where the system does not tell (Linux only).

    Of a service that runs under a supervisor it is the supervisor, which would start the service again.
    """
    sockets = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                cells = line.split()
                if cells[3] == _LISTEN and int(cells[1].rpartition(":")[2], 16) == port:
                    sockets.add(f"socket:[{cells[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(str(file.readlink()) in sockets for file in (process / "fd").iterdir()):
                holder = _supervisor(process)
                return int(holder.name), " ".join(_command(holder))[:100]
    return None


def _supervisor(process: Path) -> Path:
    """The folder in /proc of a service's supervisor, or of the process itself where it has none."""
    with suppress(OSError):
        parent = process.parent / (process / "stat").read_text().rpartition(")")[2].split()[1]
        if all({"medpix", "app.main"} & {Path(word).name for word in _command(each)[:4]} for each in (process, parent)):
            return parent
    return process


def _command(process: Path) -> list[str]:
    return (process / "cmdline").read_bytes().decode(errors="replace").strip("\0").split("\0")
