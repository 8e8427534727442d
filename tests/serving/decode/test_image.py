import hashlib
import io
import struct
import tracemalloc
import zlib

import imagecodecs
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from app.core.exceptions import ApiError
from app.core.settings import load_settings
from app.serving.decode import jpeg
from app.serving.decode.decoded_image import check_size
from app.serving.decode.image import decode
from ml.dataset.preprocess import Preprocess
from tests.serving.hostile_files import (
    GOOD_SIZE,
    accepted,
    accepted_dicoms,
    jpeg_with_exif,
    png_bomb,
    png_chunk,
    refused,
)

ACCEPTED, REFUSED = {**accepted(), **accepted_dicoms()}, refused()


@pytest.mark.parametrize("name", ACCEPTED)
def test_every_mode_is_decoded(name: str) -> None:
    decoded = decode(ACCEPTED[name], load_settings())
    assert decoded.info.sha256 == hashlib.sha256(ACCEPTED[name]).hexdigest()
    assert decoded.image.size == (decoded.info.width, decoded.info.height)
    if name not in ("smallest", "narrow"):
        assert decoded.image.size == GOOD_SIZE


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_decoded_is_refused_with_a_reason(name: str) -> None:
    data, status, words = REFUSED[name]
    with pytest.raises(ApiError) as caught:
        decode(data, load_settings())
    assert caught.value.status == status
    assert words in str(caught.value)


def test_a_bomb_is_refused_by_its_header_alone() -> None:
    bomb = png_bomb()
    assert len(bomb) < 500_000
    tracemalloc.start()
    try:
        with pytest.raises(ApiError):
            decode(bomb, load_settings())
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_a_jpeg_of_two_images_is_read_by_its_first() -> None:
    decoded = decode(ACCEPTED["jpeg with two pictures"], load_settings())
    single = decode(ACCEPTED["jpeg colour"], load_settings())
    assert np.array_equal(np.asarray(decoded.image), np.asarray(single.image))
    assert "2 images; the first one" in decoded.info.notes[0]
    assert single.info.notes == ()


def test_a_hash_that_is_known_is_not_made_again() -> None:
    assert decode(ACCEPTED["grey"], load_settings(), "known").info.sha256 == "known"


def test_limits_of_the_size() -> None:
    with pytest.raises(ApiError, match="megapixels"):
        decode(ACCEPTED["grey"], load_settings(max_pixels=5000))
    check_size(16, 16, max_pixels=256)
    with pytest.raises(ApiError, match="at least 16"):
        check_size(15, 400, max_pixels=10**6)


_TEXT = b"Comment\0" + b"x" * 3 * 2**20
_ZIPPED = zlib.compress(bytes(5 * 2**20))


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"tEXt", _TEXT),
        png_chunk(b"zTXt", b"Comment\0\0" + _ZIPPED),
        png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + _ZIPPED),
        png_chunk(b"iCCP", b"profile\0\0" + _ZIPPED),
        png_chunk(b"iCCP", b"not a profile"),
        png_chunk(b"eXIf", b"not exif"),
        png_chunk(b"tEXt", b"Comment\0fine")[:-1] + b"?",
        png_chunk(b"tRNS", b"\0\x09")[:-1] + b"?",
        png_chunk(b"gAMA", b"\0"),
    ],
    ids=["text", "zipped text", "unicode text", "profile", "no profile", "no exif", "checksum", "tRNS", "cut"],
)
def test_metadata_of_a_png_are_skipped(chunk: bytes) -> None:
    plain = ACCEPTED["grey"]
    end_of_header = 8 + 25
    spoiled = plain[:end_of_header] + chunk + plain[end_of_header:]
    image = decode(spoiled, load_settings()).image
    assert image.tobytes() == decode(plain, load_settings()).image.tobytes()
    Preprocess().apply(image)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_are_stretched_in_every_mode(channels: int) -> None:
    """12-bit values: cut to their upper 8 bits they would be nearly black."""
    values = np.zeros((64, 64, channels), dtype=np.uint16)
    values[..., :] = np.arange(64, dtype=np.uint16)[None, :, None] * 65
    if channels in (2, 4):
        values[..., -1] = 65535
    image = decode(bytes(imagecodecs.png_encode(values.squeeze())), load_settings()).image
    levels = np.asarray(image).reshape(64, 64, -1)
    assert levels.dtype == np.uint8
    assert image.mode == ["L", "LA", "RGB", "RGBA"][channels - 1]
    assert np.abs(levels[0, :, 0] - np.linspace(0, 255, 64)).max() <= 1
    assert channels not in (2, 4) or levels[..., -1].min() == 255


def test_three_bright_pixels_do_not_darken_an_image_of_sixteen_bits() -> None:
    values = np.tile(np.arange(64, dtype=np.uint16) * 65, (64, 1))
    values[0, :3] = 65535
    levels = np.asarray(decode(bytes(imagecodecs.png_encode(values)), load_settings()).image)
    assert levels[1].max() == 255


def test_the_limit_of_pixels_is_the_setting_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's own limit stays on for the rest of the process, and is not asked here."""
    assert Image.MAX_IMAGE_PIXELS is not None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for name in ("grey", "jpeg colour"):
        assert decode(ACCEPTED[name], load_settings()).image.size == GOOD_SIZE


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0not exif", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x09"]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_damaged_exif_is_skipped(exif: bytes, kind: str) -> None:
    buffer = io.BytesIO()
    Image.linear_gradient("L").save(buffer, kind, exif=exif)
    image = decode(buffer.getvalue(), load_settings()).image
    assert image.size == (256, 256)
    Preprocess().apply(image)


def test_an_image_is_turned_as_its_exif_says() -> None:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = 6  # to be turned by 90 degrees clockwise
    Image.linear_gradient("L").resize((64, 32)).save(buffer, "PNG", exif=exif)
    decoded = decode(buffer.getvalue(), load_settings())
    assert (decoded.image.size, decoded.info.width, decoded.info.height) == ((32, 64), 64, 32)
    levels = np.asarray(decoded.image)
    assert levels[0, 0] > 240
    assert Preprocess(size=64).apply(decoded.image)[0, 32, 17] > 240  # and not a second time


def _exif(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    """A TIFF header with one directory, in which the orientation follows another tag."""
    width = struct.pack(order + "HHIHH", 0x0100, 3, 1, 64, 0)
    turned = struct.pack(order + "HHIHH", 0x0112, kind, 1, orientation, 0)
    return (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, 2) + width + turned + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(10))
def test_orientations_are_those_of_pillow(orientation: int, order: str) -> None:
    """Pillow as the reference: in a JPEG, where the metadata have a prefix."""
    data = jpeg_with_exif([_exif(orientation, order)])
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(decode(data, load_settings()).image), np.asarray(expected))


def test_the_first_exif_segment_of_a_jpeg_counts() -> None:
    """And it alone reaches no decoder: Pillow would join all segments, each time with a copy."""
    first, more = _exif(6), [b"II*\0 and more"] * 500
    decoded = decode(jpeg_with_exif([first, *more]), load_settings())
    assert decoded.image.size == GOOD_SIZE[::-1]
    assert "exif" not in decoded.image.info
    data, exif = jpeg.without_metadata(jpeg_with_exif([first, *more]))
    assert (exif, len(data) < 5000, b"Exif" in data) == (b"Exif\0\0" + first, True, False)


@pytest.mark.parametrize("shape", [(32, 64), (32, 64, 3), (32, 64, 4)], ids=["grey", "rgb", "rgba"])
def test_sixteen_bit_images_are_turned_as_their_exif_says(shape: tuple[int, ...]) -> None:
    values = np.full(shape, 65535, dtype=np.uint16)
    values[:, :, ...] = (np.arange(64, dtype=np.uint16) * 1000).reshape(1, 64, *[1] * (len(shape) - 2))
    png = bytes(imagecodecs.png_encode(values))
    turned = png[:33] + png_chunk(b"eXIf", _exif(6)) + png[33:]
    upright, plain = (np.asarray(decode(data, load_settings()).image) for data in (turned, png))
    assert np.array_equal(upright, np.rot90(plain, -1))


@pytest.mark.parametrize("channels", [2, 4])
def test_what_is_fully_transparent_is_left_out_of_the_range(channels: int) -> None:
    values = np.full((64, 64, channels), 65535, dtype=np.uint16)
    values[16:, :, :-1] = np.arange(64, dtype=np.uint16)[None, :, None] * 65
    values[:16, :, -1] = 0
    levels = np.asarray(decode(bytes(imagecodecs.png_encode(values)), load_settings()).image)
    assert np.abs(levels[20, :, 0] - np.linspace(0, 255, 64)).max() <= 1
    assert levels[:16, :, -1].max() == 0


def _deep_png(surplus: int, side: int = 64, *, interlaced: bool = False) -> bytes:
    """A black PNG of 16-bit colours with as many bytes behind its pixels, in four chunks."""
    rows = side * (1 + 6 * side)
    if interlaced:
        steps = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
        sizes = ((len(range(x, side, dx)), len(range(y, side, dy))) for x, y, dx, dy in steps)
        rows = sum(height * (1 + 6 * width) for width, height in sizes)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 16, 2, 0, 0, interlaced))
    packed = zlib.compress(bytes(rows + surplus), 9)
    step = len(packed) // 4 + 1
    chunks = b"".join(png_chunk(b"IDAT", packed[at : at + step]) for at in range(0, len(packed), step))
    return b"\x89PNG\r\n\x1a\n" + header + chunks + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [64, 37])
@pytest.mark.parametrize("interlaced", [False, True])
def test_sixteen_bit_colours_that_inflate_to_more_than_their_image_are_refused(side: int, interlaced: bool) -> None:
    """All of it was inflated: 3 ms for every MiB, of which 9 GiB fit into an upload."""
    for surplus in (0, 1, 2**20):
        image = decode(_deep_png(surplus, side, interlaced=interlaced), load_settings()).image
        assert image.size == (side, side)
    for surplus in (2**20 + 1, 30 * 2**20):
        with pytest.raises(ApiError, match="more compressed pixels than its image") as caught:
            decode(_deep_png(surplus, side, interlaced=interlaced), load_settings())
        assert caught.value.status == 422


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (imagecodecs.jpeg8_encode(np.zeros((64, 64), np.uint16), bitspersample=12), "a JPEG of 12 bits per sample"),
        (imagecodecs.jpeg8_encode(np.zeros((64, 64), np.uint8), lossless=True), "JPEG Lossless"),
        (imagecodecs.jpegls_encode(np.zeros((64, 64), np.uint8)), "JPEG-LS"),
    ],
)
def test_a_jpeg_that_is_read_within_dicom_alone_is_named(data: bytes, name: str) -> None:
    with pytest.raises(ApiError, match=f"The file is {name}, which is read within DICOM files alone") as caught:
        decode(bytes(data), load_settings())
    assert caught.value.status == 415
