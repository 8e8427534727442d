"""Who may write: names and keys from MEDPIX_API_KEYS."""

import hmac
from typing import Annotated, Final

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPBearer

from app.api.deps import SettingsDep
from app.core.exceptions import ForbiddenError, UnauthorizedError
from app.core.settings import Settings

ANONYMOUS: Final = "anonymous"

# These only describe the headers in the API reference; `key_name` reads them.
_HEADER = APIKeyHeader(name="X-API-Key", auto_error=False, description="A key of MEDPIX_API_KEYS")
_BEARER = HTTPBearer(auto_error=False, description="A key of MEDPIX_API_KEYS")


def offered_key(request: Request) -> str:
    """The key of a request: X-API-Key, or Authorization: Bearer."""
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    return request.headers.get("x-api-key") or (bearer.strip() if scheme.lower() == "bearer" else "")


def key_name(settings: Settings, offered: str) -> str | None:
    """The name that goes with a key, None for no key of ours.

    Every key is compared, each in constant time, so that the time reveals nothing.
    """
    match = None
    for name, key in settings.api_keys.items():
        if hmac.compare_digest(key.get_secret_value().encode(), offered.encode()):
            match = name
    return match


async def writer(request: Request, settings: SettingsDep) -> str:
    """The name of who writes; "anonymous" where the service has no keys.

    Raises:
        UnauthorizedError: no key, or a wrong one.
        ForbiddenError: there are no keys, and other machines reach the service.
    """
    if not settings.api_keys:
        if not settings.is_local and not settings.anonymous_writes:
            raise ForbiddenError(
                "Writing is off: this service can be reached from other machines and has no keys. "
                "Set MEDPIX_API_KEYS, or MEDPIX_ANONYMOUS_WRITES=true to let everybody write."
            )
        return ANONYMOUS
    offered = offered_key(request)
    name = key_name(settings, offered)
    if name is None:
        problem = "This key is not known." if offered else "This address needs a key."
        raise UnauthorizedError(f"{problem} Send it as X-API-Key, or as Authorization: Bearer.")
    return name


WriterDep = Annotated[str, Depends(writer)]
KEY_HEADERS: Final = [Depends(_HEADER), Depends(_BEARER)]
