"""Files that users and attackers send: each with the status it must get."""

import io
import struct
import zlib
from collections.abc import Mapping
from functools import cache
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.serving.decode.dicom_files import deflated, dicom, dicom_start, jpeg

GOOD_SIZE = (96, 80)
JPEG_BASELINE, JPEG_LOSSLESS, JPEG_2000 = (
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.90",
)
EXPLICIT, RLE, JPEG_LS = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80"
MPEG_4, BASIC_TEXT_SR = "1.2.840.10008.1.2.4.102", "1.2.840.10008.5.1.4.1.1.88.11"


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


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(width: int = 20_000, height: int = 20_000) -> bytes:
    """A well-formed PNG of a few hundred kilobytes that would decode to width x height bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(b"\0" * (width + 1)) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


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
    """A JPEG with a second image behind the first, as phones write them."""
    return _encode(_picture("RGB"), "MPO", save_all=True, append_images=[_picture("RGB").rotate(180)])


@cache
def accepted() -> Mapping[str, bytes]:
    """PNG and JPEG files in every mode that is read."""
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
def accepted_dicoms() -> Mapping[str, bytes]:
    """The same image as DICOM."""
    gradient = np.asarray(_picture("L"))
    return {"dicom": dicom(gradient), "dicom deflated": deflated(gradient)}


@cache
def refused() -> Mapping[str, tuple[bytes, int, str]]:
    """Files that are refused: bytes, status, and words of the reason."""
    good = _encode(_picture())
    return {
        "empty": (b"", 422, "0 bytes"),
        "text": (b"this is not an image" * 50, 415, "not an image of a known format"),
        "truncated": (good[: len(good) * 2 // 3], 422, "cut or damaged"),
        "cut in the header": (good[:20], 422, "cut or damaged"),
        "signature only": (good[:8], 422, "cut or damaged"),
        "broken checksum": (good[:60] + bytes([good[60] ^ 0xFF]) + good[61:], 422, "cut or damaged"),
        "wrong checksum of 16-bit colours": (_wrong_checksum(), 422, "cut or damaged"),
        "jpeg of many segments": (jpeg_with_exif([b"II*\0 of 20"] * 2000), 422, "more than 1000 segments"),
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


def private_sequence(items: int, elements: int) -> bytes:
    """A private sequence without a length: nothing asks for it, and pydicom reads all of it."""
    item = b"\xfe\xff\0\xe0" + b"\xff" * 4 + b"\x08\0\0\0CS\0\0" * elements + b"\xfe\xff\x0d\xe0\0\0\0\0"
    return b"\x09\0\x10\x10SQ\0\0" + b"\xff" * 4 + item * items + b"\xfe\xff\xdd\xe0\0\0\0\0"


def explicit_sequence(pixels: NDArray[np.uint8], elements: int) -> bytes:
    """An image with a modality LUT sequence that has a length and one item."""
    content = b"\x08\0\0\0CS\0\0" * elements
    item = b"\xfe\xff\0\xe0" + struct.pack("<I", len(content)) + content
    plain = dicom(pixels)
    at = plain.index(b"\xe0\x7f\x10\0OB")
    return plain[:at] + b"\x28\0\0\x30SQ\0\0" + struct.pack("<I", len(item)) + item + plain[at:]


def empty_segments(count: int) -> dict[str, Any]:
    """The tags of a palette whose indirect segments go through as many empty ones, each time without an entry."""
    words = np.array([0, 0] * count + [2, count, 0, 0] * 50_000, dtype="<u2").tobytes()
    tags: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name in ("Red", "Green", "Blue"):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"Segmented{name}PaletteColorLookupTableData"] = words
    return tags


def jpeg_with_exif(segments: list[bytes]) -> bytes:
    """A JPEG with Exif segments of the given content."""
    plain = _encode(_picture("RGB"), "JPEG")
    parts = (b"\xff\xe1" + struct.pack(">H", len(content) + 8) + b"Exif\0\0" + content for content in segments)
    return plain[:2] + b"".join(parts) + plain[2:]


def _wrong_checksum() -> bytes:
    """A PNG of 16-bit colours whose pixels are whole."""
    png = bytes(imagecodecs.png_encode(np.zeros((32, 32, 3), dtype=np.uint16)))
    at = png.index(b"IDAT")
    end = at + 4 + int.from_bytes(png[at - 4 : at])
    return png[:end] + b"????" + png[end + 4 :]


def _rle(segments: list[bytes]) -> bytes:
    offsets = np.zeros(16, dtype="<u4")
    offsets[0] = len(segments)
    offsets[1 : len(segments) + 1] = 64 + np.cumsum([0, *map(len, segments)])[:-1]
    return offsets.tobytes() + b"".join(segments)


def many_tiles(side: int, transform: int = 0) -> bytes:
    """A JPEG 2000 frame of colours with a tile for every pixel, and a transform of Part 2 of so many bytes."""
    frame = bytearray(imagecodecs.jpeg2k_encode(np.zeros((64, 64, 3), np.uint8), codecformat="j2k", reversible=True))
    at = frame.index(b"\xff\x51")
    struct.pack_into(">8I", frame, at + 6, side, side, 0, 0, 1, 1, 0, 0)
    end = frame.index(b"\xff\x52")
    marker = b"\xff\x74" + struct.pack(">HHHH", transform + 8, 0, 0x0201, 0) + bytes(transform)
    return bytes(frame[:end] + marker * bool(transform) + frame[end:])


@cache
def dicom_bombs() -> Mapping[str, bytes]:
    """Small DICOM files that ask a decoder for hundreds of megabytes or more."""
    grey = np.zeros((64, 64), dtype=np.uint8)
    large = np.zeros((3000, 3000), dtype=np.uint8)
    many = np.zeros((250, 250, 3), dtype=np.uint8)
    linear = np.tile(np.array([0, 1, 1, 1, 65535, 1], dtype="<u2"), 200_000).tobytes()
    segments: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name in ("Red", "Green", "Blue"):
        segments[f"{name}PaletteColorLookupTableDescriptor"] = [0, 0, 16]
        segments[f"Segmented{name}PaletteColorLookupTableData"] = linear
    return {
        "deflated": deflated(grey, mebibytes=300),
        "deflated behind a long meta header": deflated(grey, version=bytes(5000), mebibytes=300),
        "rle": dicom(grey, syntax=RLE, frame=_rle([b"\x81\0" * 4_000_000])),
        "jpeg 2000 larger inside": dicom(grey, syntax=JPEG_2000, frame=jpeg(large, "JPEG2000")),
        "jpeg larger inside": dicom(grey, syntax=JPEG_BASELINE, frame=jpeg(large)),
        "jpeg lossless larger inside": dicom(
            grey, syntax=JPEG_LOSSLESS, frame=imagecodecs.jpeg8_encode(large, lossless=True, bitspersample=8)
        ),
        "jpeg-ls larger inside": dicom(grey, syntax=JPEG_LS, frame=imagecodecs.jpegls_encode(large)),
        "jpeg 2000 of many tiles": dicom(many, syntax=JPEG_2000, frame=many_tiles(250)),
        "jpeg 2000 transform for each tile": dicom(many[:60, :60], syntax=JPEG_2000, frame=many_tiles(60, 20_000)),
        "palette segments": dicom(grey, **segments),
        "frames": dicom(grey, NumberOfFrames=2**31 - 1),
        "compressed frames": dicom(grey, syntax=JPEG_BASELINE, frame=jpeg(grey), NumberOfFrames=2**31 - 1),
    }


def _refused_dicoms() -> Mapping[str, tuple[bytes, int, str]]:
    ramp = np.tile(np.arange(64, dtype=np.int16), (32, 1))
    grey = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    twelve = np.tile(np.arange(0, 4096, 64, dtype=np.uint16), (64, 1))
    square = np.zeros((400, 400), dtype=np.uint8)
    bombs = dicom_bombs()
    files = {
        "without pixels": (dicom(ramp, PixelData=None), 422, "no image: it is of the kind CT Image Storage"),
        "report": (dicom(ramp, PixelData=None, SOPClassUID=BASIC_TEXT_SR), 422, "Basic Text SR Storage"),
        "without rows": (dicom(ramp, Rows=None), 422, "no image"),
        "cut in the pixels": (dicom(ramp)[:-500], 422, "cut or damaged"),
        "cut in the header": (dicom(ramp)[:200], 422, "no image"),
        "bomb": (dicom(ramp, Rows=60_000, Columns=60_000), 413, "megapixels"),
        "too small": (dicom(ramp[:8]), 422, "at least 16"),
        "of rows that do not fit": (dicom(ramp, Rows=33), 422, "1 x 33 rows x 64 columns take 4224 bytes"),
        "of frames that are not there": (dicom(ramp, NumberOfFrames=1000), 422, "take 4096000 bytes"),
        "palette without tables": (dicom(grey, PhotometricInterpretation="PALETTE COLOR"), 422, "colour palette"),
        "hsv": (
            dicom(np.zeros((32, 32, 3), np.uint8), PhotometricInterpretation="HSV"),
            415,
            "3 sample(s) of 8 bits, HSV",
        ),
        "video": (dicom(grey, syntax=MPEG_4, frame=b"\0" * 100), 415, "encoded as MPEG-4 AVC/H.264 High Profile"),
        "private codec": (dicom(grey, syntax="1.2.3.4", frame=b"\0" * 100), 415, "private or unknown transfer syntax"),
        "broken rle": (dicom(grey, syntax=RLE, frame=b"\0" * 100), 422, "RLE Lossless pixel data"),
        "broken jpeg lossless": (dicom(grey, syntax=JPEG_LOSSLESS, frame=b"\0" * 100), 422, "no JPEG Lossless"),
        "no jpeg in it": (dicom(grey, syntax=JPEG_BASELINE, frame=b"no jpeg"), 422, "cut or damaged"),
        "not compressed after all": (
            dicom(grey).replace(EXPLICIT.encode() + b"\0", RLE.encode() + b"\0"),
            422,
            "transfer syntax is RLE Lossless, and its pixel data are not compressed",
        ),
        "larger inside": (bombs["jpeg 2000 larger inside"], 422, "64 x 64 pixels of 1 sample(s), the compressed"),
        "many tiles": (bombs["jpeg 2000 of many tiles"], 422, "divided into 62500 tiles; at most 4096 are read"),
        "transform of jpeg 2000": (bombs["jpeg 2000 transform for each tile"], 422, "transforms of JPEG 2000 Part 2"),
        "scan bomb": (dicom(square, syntax=JPEG_BASELINE, frame=scan_bomb(400)), 422, "more than 100 scans"),
        "of many elements": (dicom_start() + b"\x08\0\0\0CS\0\0" * 1_000_000, 422, "more than 200000 elements"),
        "of much meta information": (
            b"\0" * 128 + b"DICM" + b"\2\0\2\0UI\0\0" * 1_000_000,
            422,
            "more than 200000 elements",
        ),
        "of many elements in items": (dicom_start() + private_sequence(40, 8000), 422, "more than 200000 elements"),
        "of many elements in a sequence with a length": (
            explicit_sequence(grey, 250_000),
            422,
            "more than 200000 elements",
        ),
        "palette of empty segments": (
            dicom(grey, **empty_segments(65_535)),
            422,
            "segments for red are cut or damaged",
        ),
        "of fewer bits than its jpeg 2000": (
            dicom(grey, syntax=JPEG_2000, frame=imagecodecs.jpeg2k_encode(twelve, codecformat="j2k", bitspersample=12)),
            422,
            "BitsAllocated is 8, and the compressed frame has 12 bits",
        ),
        "of fewer bits than its jpeg-ls": (
            dicom(grey, syntax=JPEG_LS, frame=imagecodecs.jpegls_encode(twelve)),
            422,
            "BitsAllocated is 8, and the compressed frame has 16 bits",
        ),
        "of fewer bits than its jpeg lossless": (
            dicom(
                grey,
                syntax=JPEG_LOSSLESS,
                frame=imagecodecs.jpeg8_encode(twelve, lossless=True, bitspersample=12),
            ),
            422,
            "BitsAllocated is 8, and the compressed frame has 12 bits",
        ),
        **{
            f"{colours} without jpeg 2000": (
                dicom(np.zeros((32, 32, 3), np.uint8), PhotometricInterpretation=colours),
                422,
                f"{colours} are colours of JPEG 2000",
            )
            for colours in ("YBR_ICT", "YBR_RCT")
        },
        "of many items": (
            dicom_start() + b"\0\x52\x30\x92SQ\0\0" + b"\xff" * 4 + b"\xfe\xff\0\xe0\0\0\0\0" * 1_000_000,
            422,
            "more than 100000 sequence items",
        ),
        "garbage": (b"\0" * 128 + b"DICM" + b"garbage" * 100, 422, "DICOM"),
        "deflate bomb": (bombs["deflated behind a long meta header"], 413, "when it is inflated"),
        "deflated and cut": (deflated(ramp)[:-20], 422, "deflated data set of the DICOM file is cut"),
    }
    return {f"dicom {name}": file for name, file in files.items()}
