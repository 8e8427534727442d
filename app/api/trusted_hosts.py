"""Which names the service answers to, so that a foreign page cannot reach it by rebinding its own name."""

import ipaddress
from collections.abc import Sequence

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.errors import problem_response
from app.core.exceptions import MisdirectedError


class TrustedHosts:
    """Refuses requests whose Host header is not trusted.

    Addresses, names without a dot (``localhost``, a container's name) and names below ``.localhost`` are always
    trusted: nobody can make them point here in another's browser by an entry in their own domain.

    Args:
        app: the application.
        hosts: further names; ``*.example.org`` stands for all below, ``*`` for every name.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app = app
        self._hosts = tuple(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "http" and not self._trusts(_name_of(Headers(scope=scope).get("host", ""))):
            error = MisdirectedError("The service does not answer to this host name. Add it to MEDPIX_TRUSTED_HOSTS.")
            await problem_response(Request(scope), error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _trusts(self, name: str) -> bool:
        if "." not in name.strip(".") or name.endswith(".localhost") or _is_address(name):
            return True
        return any(host in ("*", name) or (host.startswith("*.") and name.endswith(host[1:])) for host in self._hosts)


def _name_of(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
