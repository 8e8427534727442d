"""JSON answers of the data endpoints: an ETag over the content, 304 for who has it, the dataset's version."""

import hashlib
import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import Request, Response

from app.api.files import matches
from app.data.repository import Repository

# A copy may be kept, but is asked for again: a seeding or an annotation can change the answer.
_CACHE_CONTROL: Final = "no-cache"


def encode(content: Any) -> bytes:
    """Compact UTF-8 JSON."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


async def data_response(
    request: Request, repository: Repository, content: Any, *, headers: Mapping[str, str] | None = None
) -> Response:
    """A JSON answer about the data.

    Args:
        request: supplies If-None-Match.
        repository: knows the version of the dataset.
        content: what is answered; bytes are JSON already, encoded off the event loop.
        headers: further ones.
    """
    body = content if isinstance(content, bytes) else encode(content)
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    sent = {"ETag": etag, "Cache-Control": _CACHE_CONTROL, **(headers or {})}
    version = await repository.dataset_version()
    if version:
        sent["X-Dataset-Version"] = version
    if matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=sent)
    return Response(body, headers=sent, media_type="application/json")
