"""Reads multipart uploads, with a clear error for each thing that can be wrong with them."""

from typing import Any, Final

from fastapi import Request
from starlette.datastructures import UploadFile

from app.core.exceptions import ApiError, ContentTooLargeError, UnprocessableError, UnsupportedMediaTypeError
from app.core.settings import Settings
from app.serving.prediction_context import PredictionContext

# Room for a caption at its longest allowed setting, four bytes a character.
_MAX_PART_BYTES: Final = 512 * 1024
_MAX_PARTS: Final = 2_000
_MAX_FILES: Final = 4
_MAX_FIELDS: Final = 8
_FORM_OVERHEAD: Final = 64 * 1024

# In the order of the request; an error stands for an image whose caption cannot be used.
Uploads = list[PredictionContext | ApiError]


def body_limit(settings: Settings, path: str) -> int:
    """The largest body of an address, in bytes: one image with its form, or a batch of them."""
    return settings.max_body_bytes if path.endswith("/batch") else settings.max_image_bytes + _FORM_OVERHEAD


async def read_upload(request: Request, settings: Settings, *, with_caption: bool) -> PredictionContext:
    """The image, and the caption if there is one, of a multipart request.

    An empty caption counts as none.

    Raises:
        UnsupportedMediaTypeError: the body is not multipart/form-data.
        UnprocessableError: not one file in the field ``image``, or a caption that is no text.
        ContentTooLargeError: the caption is longer than its limit.
    """
    _check_media_type(request, "the image as multipart/form-data, field image")
    # More files than the one are read, to say what is wrong with them.
    async with request.form(max_files=_MAX_FILES, max_fields=_MAX_FIELDS, max_part_size=_MAX_PART_BYTES) as form:
        images = form.getlist("image")
        if len(images) > 1:
            raise UnprocessableError(f"There are {len(images)} fields image; send one, or ask the address for batches.")
        if not images or not isinstance(images[0], UploadFile):
            found = "it is text, not a file" if images else "it is missing"
            raise UnprocessableError(f"The field image must be a file; {found}.")
        caption = _caption(form.get("caption", ""), "caption", settings) if with_caption else None
        return PredictionContext(await images[0].read(), caption)


async def read_batch(request: Request, settings: Settings, *, with_captions: bool) -> Uploads:
    """The images, and the captions if there are any, of a multipart request.

    Raises:
        UnsupportedMediaTypeError: the body is not multipart/form-data.
        UnprocessableError: no file in the field ``images``, or not as many captions as images.
        ContentTooLargeError: too many images.
    """
    _check_media_type(request, "the images as multipart/form-data, each in a field images")
    limit = settings.max_images_per_request
    # More parts than the limit are read, up to the limit of the body, to answer what is wrong.
    async with request.form(max_files=_MAX_PARTS, max_fields=_MAX_PARTS, max_part_size=_MAX_PART_BYTES) as form:
        images = form.getlist("images")
        files = [image for image in images if isinstance(image, UploadFile)]
        if not images or len(files) < len(images):
            found = "one is text, not a file" if images else "there is none"
            raise UnprocessableError(f"Each field images must be a file; {found}.")
        if len(files) > limit:
            raise ContentTooLargeError(f"The request has {len(files)} images; the limit is {limit}. Send several.")
        captions = form.getlist("captions") if with_captions else []
        if captions and len(captions) != len(files):
            raise UnprocessableError(
                f"There are {len(files)} images and {len(captions)} captions. Send one caption per image, in the "
                "same order, empty where there is none; or no caption at all."
            )
        uploads: Uploads = []
        for place, file in enumerate(files):
            try:
                caption = _caption(captions[place], f"captions[{place}]", settings) if captions else None
                uploads.append(PredictionContext(await file.read(), caption))
            except ApiError as error:
                uploads.append(error)
        return uploads


def _check_media_type(request: Request, wanted: str) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "multipart/form-data":
        given = f"not {media_type}" if media_type else "and name it in Content-Type"
        raise UnsupportedMediaTypeError(f"Send {wanted}, {given}.")


def _caption(caption: UploadFile | str, field: str, settings: Settings) -> str | None:
    if not isinstance(caption, str):
        raise UnprocessableError(f"The field {field} must be text, not a file.")
    if len(caption) > settings.max_caption_chars:
        raise ContentTooLargeError(
            f"The caption has {len(caption)} characters; the limit is {settings.max_caption_chars}."
        )
    return caption.strip() or None


def upload_schema(*, with_caption: bool) -> dict[str, Any]:
    """The ``openapi_extra`` of a route that takes an upload."""
    properties: dict[str, Any] = {
        "image": {"type": "string", "format": "binary", "description": "PNG, JPEG or DICOM file"},
    }
    if with_caption:
        properties["caption"] = {"type": "string", "description": "What the image shows; optional"}
    return _form_schema(properties, required="image")


def batch_schema(*, with_captions: bool) -> dict[str, Any]:
    """The ``openapi_extra`` of a route that takes many uploads."""
    images = {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}
    properties: dict[str, Any] = {"images": images | {"description": "PNG, JPEG or DICOM files"}}
    if with_captions:
        description = "One per image, in the same order, empty where there is none; or left out"
        properties["captions"] = {"type": "array", "items": {"type": "string"}, "description": description}
    return _form_schema(properties, required="images")


def _form_schema(properties: dict[str, Any], *, required: str) -> dict[str, Any]:
    schema = {"type": "object", "required": [required], "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
