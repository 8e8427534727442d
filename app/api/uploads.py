"""Reads multipart uploads, with a clear error for each thing that can be wrong with them."""

from typing import Any, Final

from fastapi import Request
from starlette.datastructures import FormData, UploadFile

from app.config import Settings
from app.errors import ContentTooLargeError, UnprocessableError, UnsupportedMediaTypeError
from app.inference.predictor import Upload

# Room for a caption at its longest allowed setting, four bytes a character.
_MAX_PART_BYTES: Final = 512 * 1024


async def read_upload(request: Request, settings: Settings, *, with_caption: bool) -> Upload:
    """The image, and the caption if there is one, of a multipart request.

    An empty caption counts as none.

    Raises:
        UnsupportedMediaTypeError: the body is not multipart/form-data.
        UnprocessableError: no file in the field ``image``, or several.
        ContentTooLargeError: the caption is longer than its limit.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "multipart/form-data":
        given = f"not {media_type}" if media_type else "and name it in Content-Type"
        raise UnsupportedMediaTypeError(f"Send the image as multipart/form-data, field image, {given}.")
    async with request.form(max_files=1, max_fields=8, max_part_size=_MAX_PART_BYTES) as form:
        image = form.get("image")
        if not isinstance(image, UploadFile):
            found = "it is text, not a file" if image is not None else "it is missing"
            raise UnprocessableError(f"The field image must be a file; {found}.")
        return Upload(await image.read(), _caption(form, settings) if with_caption else None)


def _caption(form: FormData, settings: Settings) -> str | None:
    caption = form.get("caption", "")
    if not isinstance(caption, str):
        raise UnprocessableError("The field caption must be text, not a file.")
    if len(caption) > settings.max_caption_chars:
        raise ContentTooLargeError(
            f"The caption has {len(caption)} characters; the limit is {settings.max_caption_chars}."
        )
    return caption.strip() or None


def upload_schema(*, with_caption: bool) -> dict[str, Any]:
    """The ``openapi_extra`` of a route that takes an upload."""
    properties: dict[str, Any] = {
        "image": {"type": "string", "format": "binary", "description": "PNG or JPEG file"},
    }
    if with_caption:
        properties["caption"] = {"type": "string", "description": "What the image shows; optional"}
    schema = {"type": "object", "required": ["image"], "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
