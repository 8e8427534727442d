"""Reads multipart uploads, with a clear error for each thing that can be wrong with them."""

from collections.abc import AsyncIterator, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from fastapi import HTTPException, Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from app.core.exceptions import ApiError, ContentTooLargeError, UnprocessableError, UnsupportedMediaTypeError
from app.core.settings import Settings
from app.serving.prediction_context import PredictionContext

# Room for a caption at its longest allowed setting, four bytes a character.
_MAX_PART_BYTES: Final = 512 * 1024
_MAX_PARTS: Final = 2_000
_MAX_FILES: Final = 4
_MAX_FIELDS: Final = 8
_FORM_OVERHEAD: Final = 64 * 1024
_LONGEST_PATH: Final = 4096
# 500 ids, or a comment of 5,000 characters that are all escaped as two times \uXXXX.
_MAX_JSON_BYTES: Final = 64 * 1024
_UPLOAD_ADDRESSES: Final = (
    *("/predict/modality", "/predict/location", "/explain/modality", "/explain/location"),
    *("/preview", "/search/similar"),
)

# A part without a file name is a file all the same where a file belongs.
_UNNAMED: Final = "upload"
# Browsers fill in such a field by themselves; all texts are read as UTF-8.
_CHARSET: Final = "_charset_"


@dataclass(frozen=True, slots=True)
class BatchUpload:
    """One image of a batch.

    Attributes:
        file_name: that the client gave it.
        context: the image with its caption; an error stands for an image whose caption cannot be used.
    """

    file_name: str
    context: PredictionContext | ApiError


def body_limit(settings: Settings, path: str) -> int:
    """The largest body of an address, in bytes: one image with its form, a batch of them, or JSON."""
    if path.endswith("/batch"):
        return settings.max_body_bytes
    return settings.max_image_bytes + _FORM_OVERHEAD if path.endswith(_UPLOAD_ADDRESSES) else _MAX_JSON_BYTES


async def read_upload(request: Request, settings: Settings, *, with_caption: bool) -> PredictionContext:
    """The image, and the caption if there is one, of a multipart request.

    An empty caption counts as none.

    Raises:
        UnsupportedMediaTypeError: the body is not multipart/form-data.
        UnprocessableError: not one file in the field ``image``, a caption that is no text, or an unknown field.
        ContentTooLargeError: the caption is longer than its limit.
    """
    _check_media_type(request, "the image as multipart/form-data, field image")
    # More files than the one are read, to say what is wrong with them.
    async with _form(request, {"image"}, max_files=_MAX_FILES, max_fields=_MAX_FIELDS) as form:
        images = form.getlist("image")
        if len(images) > 1:
            raise UnprocessableError(f"There are {len(images)} fields image; send one, or ask the address for batches.")
        if not images:
            raise UnprocessableError(f"The field image must be a file; it is missing.{_fields_of(form)}")
        _check_fields(form, "image", *(("caption",) if with_caption else ()))
        captions = form.getlist("caption") if with_caption else []
        if len(captions) > 1:
            raise UnprocessableError(f"There are {len(captions)} fields caption; send one.")
        caption = _caption(captions[0], "caption", settings) if captions else None
        return PredictionContext(await _file(images[0], "The field image"), caption)


async def read_batch(request: Request, settings: Settings, *, with_captions: bool) -> list[BatchUpload]:
    """The images, and the captions if there are any, of a multipart request, in its order.

    Raises:
        UnsupportedMediaTypeError: the body is not multipart/form-data.
        UnprocessableError: no file in the field ``images``, not as many captions as images, or an unknown field.
        ContentTooLargeError: too many images.
    """
    _check_media_type(request, "the images as multipart/form-data, each in a field images")
    limit = settings.max_images_per_request
    # More parts than the limit are read, up to the limit of the body, to answer what is wrong.
    async with _form(request, {"images"}, max_files=_MAX_PARTS, max_fields=_MAX_PARTS) as form:
        images = form.getlist("images")
        if not images:
            raise UnprocessableError(f"Each field images must be a file; there is none.{_fields_of(form)}")
        if len(images) > limit:
            raise ContentTooLargeError(f"The request has {len(images)} images; the limit is {limit}. Send several.")
        _check_fields(form, "images", *(("captions",) if with_captions else ()))
        captions = form.getlist("captions") if with_captions else []
        if captions and len(captions) != len(images):
            raise UnprocessableError(
                f"There are {len(images)} images and {len(captions)} captions. Send one caption per image, in the "
                "same order, empty where there is none; or no caption at all."
            )
        uploads: list[BatchUpload] = []
        for index, image in enumerate(images):
            data = await _file(image, f"The field images[{index}]")
            context: PredictionContext | ApiError
            try:
                caption = _caption(captions[index], f"captions[{index}]", settings) if captions else None
                context = PredictionContext(data, caption)
            except ApiError as error:
                context = error
            name = image.filename if isinstance(image, UploadFile) else None
            uploads.append(BatchUpload(name or _UNNAMED, context))
        return uploads


class _FormParser(MultiPartParser):
    """Starlette's parser, for which a part without a file name is text: here the name of the field decides.

    Attributes:
        is_complete: whether the closing boundary was read.
    """

    def __init__(self, request: Request, file_fields: Set[str], *, max_files: int, max_fields: int) -> None:
        super().__init__(request.headers, request.stream(), max_files=max_files, max_fields=max_fields)
        self._file_fields = {name.encode() for name in file_fields}
        self.is_complete = False

    def on_headers_finished(self) -> None:
        """Start a file or a text."""
        part = self._current_part
        _, options = parse_options_header(part.content_disposition)
        if options.get(b"name") in self._file_fields and b"filename" not in options:
            part.content_disposition = (part.content_disposition or b"") + f'; filename="{_UNNAMED}"'.encode()
        super().on_headers_finished()

    def on_end(self) -> None:
        """Take note of the closing boundary."""
        self.is_complete = True

    def close(self) -> None:
        """Close all files, also that of a part that is cut."""
        for file in self._files_to_close_on_error:
            file.close()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        """Take a piece of a part; a text has a limit of its own."""
        part = self._current_part
        if part.file is None and len(part.data) + end - start > _MAX_PART_BYTES:
            raise ContentTooLargeError(
                f"The field {part.field_name[:80]} has more than {_MAX_PART_BYTES // 1024} KiB of text."
            )
        super().on_part_data(data, start, end)


@asynccontextmanager
async def _form(request: Request, file_fields: Set[str], *, max_files: int, max_fields: int) -> AsyncIterator[FormData]:
    """The fields of a multipart request; files are closed at the end.

    Raises:
        HTTPException: the body is no multipart form, or has too many parts (400).
        ContentTooLargeError: a text is too long.
    """
    parser = _FormParser(request, file_fields, max_files=max_files, max_fields=max_fields)
    try:
        form = await parser.parse()
        if not parser.is_complete:
            raise HTTPException(HTTPStatus.BAD_REQUEST, "The multipart body is cut: its closing boundary is missing.")
        yield form
    except MultiPartException as error:
        raise HTTPException(HTTPStatus.BAD_REQUEST, f"The multipart body cannot be read: {error.message}") from error
    finally:
        parser.close()


async def _file(image: UploadFile | str, field: str) -> bytes:
    assert isinstance(image, UploadFile)  # the parser makes it one
    data = await image.read()
    if image.filename == _UNNAMED and 0 < len(data) < _LONGEST_PATH and data.isascii() and data.decode().isprintable():
        raise UnprocessableError(f"{field} must be a file; it is text, not a file. With curl, write @ before its path.")
    return data


def _fields_of(form: FormData) -> str:
    """Which fields there are instead, to find a misspelt one."""
    names = sorted({name[:40] for name in form})
    return f" The request has: {', '.join(names[:5])}." if names else ""


def _check_fields(form: FormData, *taken: str) -> None:
    """Refuse fields that would be ignored, such as ``captions`` where the caption belongs into ``caption``."""
    unknown = sorted({name for name in form if name not in (*taken, _CHARSET)})
    if unknown:
        fields = f"the fields are {' and '.join(taken)}" if len(taken) > 1 else f"the only field is {taken[0]}"
        raise UnprocessableError(f"The field {unknown[0][:40]} is not taken here; {fields}.")


def _check_media_type(request: Request, expected: str) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "multipart/form-data":
        actual = f"not {media_type}" if media_type else "and name it in Content-Type"
        raise UnsupportedMediaTypeError(f"Send {expected}, {actual}.")
    charset = parse_options_header(request.headers["content-type"])[1].get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower() not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedMediaTypeError(f"Send the texts as UTF-8, not as {charset[:40]!r}.")


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
