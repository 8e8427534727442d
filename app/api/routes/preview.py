"""The image that is analysed, for files that a browser cannot show."""

import asyncio
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from app.api.deps import ModelsDep, SettingsDep
from app.api.errors import BINARY, Responses, documented
from app.api.uploads import body_limit, read_upload, upload_schema
from app.core.exceptions import DeadlineExceededError, UnavailableError
from app.core.settings import Settings
from ml.dataset.preprocess import to_eight_bits

router = APIRouter(tags=["predict"])

_MAX_SIDE: Final = 1024
# Decoding takes memory and a core: no more than this at once, beside the predictions.
_SLOTS: Final = threading.BoundedSemaphore(2)
_PNG: Responses = {200: {"content": {"image/png": BINARY}, "description": "The image"}}


@router.post(
    "/preview",
    response_class=Response,
    responses={**_PNG, **documented(400, 413, 415, 422, 429, 503, 504)},
    openapi_extra=upload_schema(with_caption=False),
    summary="Show the image that is analysed",
)
async def preview(request: Request, settings: SettingsDep, models: ModelsDep) -> Response:
    """The image that the models are given of an upload, before it is resized: of DICOM, the frame after its window.

    A PNG of 8 bits per sample, at most 1,024 pixels wide and high. Nothing is stored.
    """
    with _slot():  # not kept while the body comes: two slow clients would keep out all others
        declared = request.headers.get("content-length", "")
    size = int(declared) if declared.isdigit() else body_limit(settings, request.url.path)
    try:
        with models.upload_budget.reserve(size):
            async with asyncio.timeout(settings.request_deadline_s):
                upload = await read_upload(request, settings, with_caption=False)
                body = await run_in_threadpool(_png, upload.data, settings)
    except TimeoutError as error:
        raise DeadlineExceededError("The image took too long to upload or to decode.") from error
    return Response(body, media_type="image/png", headers={"Cache-Control": "no-store"})


@contextmanager
def _slot() -> Iterator[None]:
    """One of the slots, until the end.

    Raises:
        UnavailableError: none is free.
    """
    if not _SLOTS.acquire(blocking=False):
        raise UnavailableError("Too many images are being decoded. Try again shortly.")
    try:
        yield
    finally:
        _SLOTS.release()


def _png(data: bytes, settings: Settings) -> bytes:
    """Decode and encode, in a slot of this thread: a thread goes on where its request has ended.

    Raises:
        UnavailableError: no slot is free.
    """
    from app.serving.decode.image import decode  # noqa: PLC0415  # pydicom takes a second to import

    with _slot():
        image = to_eight_bits(decode(data, settings).image)
        image = image if image.mode in ("L", "RGB") else image.convert("RGB")
        image.thumbnail((_MAX_SIDE, _MAX_SIDE))
        stream = io.BytesIO()
        image.save(stream, "PNG")
        return stream.getvalue()
