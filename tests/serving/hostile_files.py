"""Files that users and attackers send: each with the status it must get."""

import io
import struct
import zlib
from collections.abc import Mapping
from functools import cache

import numpy as np
from PIL import Image

from tests.serving.decode.dicom_files import dicom, jpeg

GOOD_SIZE = (96, 80)
JPEG_BASELINE, JPEG_LOSSLESS, JPEG_2000 = (
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.90",
)
RLE, DEFLATED = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.1.99"


def _encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _picture(mode: str = "L") -> Image.Image:
    gradient = Image.linear_gradient("L").resize(GOOD_SIZE)
    if mode == "I;16":
        return Image.frombytes("I;16", GOOD_SIZE, b"".join(struct.pack("<H", v * 257) for v in gradient.tobytes()))
    if mode == "RGBA":
        picture = gradient.convert("RGBA")
        picture.putalpha(Image.linear_gradient("L").rotate(90).resize(GOOD_SIZE))
        return picture
    return gradient.convert(mode)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(width: int = 20_000, height: int = 20_000) -> bytes:
    """A well-formed PNG of a few hundred kilobytes that would decode to width x height bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(b"\0" * (width + 1)) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def scan_bomb(side: int = 1000, scans: int = 300) -> bytes:
    """A progressive JPEG with one of its scans many times over; a decoder goes through the whole image each time."""
    data = _encode(Image.linear_gradient("L").resize((side, side)), "JPEG", progressive=True)
    starts = [place for place in range(len(data)) if data[place : place + 2] == b"\xff\xda"]
    first, end = starts[-2], starts[-1]
    tables = data.find(b"\xff\xc4", first, end)
    scan = data[first : tables if tables > 0 else end]
    return data[:first] + scan * scans + data[first:]


def _animation() -> bytes:
    frames = [_picture(), _picture().rotate(180)]
    return _encode(frames[0], save_all=True, append_images=frames[1:], duration=100)


def _phone_picture() -> bytes:
    """A JPEG with a second picture behind the first, as phones write them."""
    return _encode(_picture("RGB"), "MPO", save_all=True, append_images=[_picture("RGB").rotate(180)])


@cache
def accepted() -> Mapping[str, bytes]:
    """Files in every mode that is read."""
    return {
        "grey": _encode(_picture("L")),
        "bilevel": _encode(_picture("1")),
        "palette": _encode(_picture("RGB").convert("P")),
        "grey with alpha": _encode(_picture("LA")),
        "rgb": _encode(_picture("RGB")),
        "rgba with real transparency": _encode(_picture("RGBA")),
        "16 bit": _encode(_picture("I;16")),
        "jpeg grey": _encode(_picture("L"), "JPEG"),
        "jpeg colour": _encode(_picture("RGB"), "JPEG"),
        "jpeg cmyk": _encode(_picture("CMYK"), "JPEG"),
        "jpeg progressive": _encode(_picture("RGB"), "JPEG", progressive=True),
        "jpeg with two pictures": _phone_picture(),
        "smallest": _encode(Image.new("L", (16, 16), 9)),
        "narrow": _encode(Image.new("L", (16, 2000), 9)),
    }


@cache
def refused() -> Mapping[str, tuple[bytes, int, str]]:
    """Files that are refused: bytes, status, and words of the reason."""
    good = _encode(_picture())
    return {
        "empty": (b"", 422, "0 bytes"),
        "text": (b"this is not an image" * 50, 415, "not an image of a known format"),
        "truncated": (good[: len(good) * 2 // 3], 422, "cut or damaged"),
        "cut in the header": (good[:20], 422, "cut or damaged"),
        "signature only": (good[:8], 415, "not an image"),
        "broken checksum": (good[:60] + bytes([good[60] ^ 0xFF]) + good[61:], 422, "cut or damaged"),
        "one pixel": (_encode(Image.new("L", (1, 1))), 422, "at least 16"),
        "bomb": (png_bomb(), 413, "megapixels"),
        "scan bomb": (scan_bomb(), 422, "more than 100 scans"),
        "animated": (_animation(), 422, "animation of 2 frames"),
        "gif": (_encode(_picture("P"), "GIF"), 415, "PNG, JPEG or DICOM"),
        "tiff": (_encode(_picture(), "TIFF"), 415, "PNG, JPEG or DICOM"),
        "webp": (_encode(_picture("RGB"), "WEBP"), 415, "PNG, JPEG or DICOM"),
        "pdf": (b"%PDF-1.7\n" + b"x" * 2000, 415, "not an image"),
        "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 415, "not an image"),
        "over the byte limit": (good + b"\0" * (10 * 1024**2), 413, "limit"),
        **_refused_dicoms(),
    }


def _refused_dicoms() -> Mapping[str, tuple[bytes, int, str]]:
    ramp = np.tile(np.arange(64, dtype=np.int16), (32, 1))
    grey = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    square, large = np.zeros((400, 400), dtype=np.uint8), np.zeros((3000, 3000), dtype=np.uint8)
    files = {
        "without pixels": (dicom(ramp, PixelData=None), 422, "no image"),
        "without rows": (dicom(ramp, Rows=None), 422, "no image"),
        "cut in the pixels": (dicom(ramp)[:-500], 422, "cut or damaged"),
        "cut in the header": (dicom(ramp)[:200], 422, "DICOM"),
        "bomb": (dicom(ramp, Rows=60_000, Columns=60_000), 413, "megapixels"),
        "too small": (dicom(ramp[:8]), 422, "at least 16"),
        "of frames that are not there": (dicom(ramp, NumberOfFrames=1000), 422, "cut or damaged"),
        "palette": (dicom(grey, PhotometricInterpretation="PALETTE COLOR"), 415, "Convert it first"),
        "rle": (dicom(grey, syntax=RLE, frame=b"\0" * 100), 415, "Convert it first"),
        "jpeg lossless": (dicom(grey, syntax=JPEG_LOSSLESS, frame=b"\0" * 100), 415, "Convert it first"),
        "no jpeg in it": (dicom(grey, syntax=JPEG_BASELINE, frame=b"no jpeg"), 422, "cut or damaged"),
        "larger inside": (dicom(grey, syntax=JPEG_2000, frame=jpeg(large, "JPEG2000")), 422, "size"),
        "scan bomb": (dicom(square, syntax=JPEG_BASELINE, frame=scan_bomb(400)), 422, "more than 100 scans"),
        "garbage": (b"\0" * 128 + b"DICM" + b"garbage" * 100, 422, "cut or damaged"),
        "deflated": (dicom(ramp, syntax=DEFLATED), 415, "deflated"),
    }
    return {f"dicom {name}": file for name, file in files.items()}
