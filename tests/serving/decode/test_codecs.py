"""Every file of pydicom and pydicom-data that pydicom decodes, against pydicom with another decoder (GDCM)."""

import io
import re
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pydicom.data
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from app.core.exceptions import ApiError
from app.core.settings import load_settings
from app.serving.decode import decoded_image, dicom_pixels
from app.serving.decode import dicom as decoder
from app.serving.decode.image import decode
from tests.serving.decode.dicom_files import dicom, read

# Of these pydicom has no image either: cut, without a frame or without pixels.
_WITHOUT_REFERENCE = {
    "JPEG2000-embedded-sequence-delimiter.dcm",
    "JPEG-lossy.dcm",  # 12 bits, which GDCM does not decode
    "JPGExtended.dcm",
    "MR_truncated.dcm",
    "OT-PAL-8-face.dcm",
    "badVR.dcm",
    "meta_missing_tsyntax.dcm",
    "nested_priv_SQ.dcm",
}


def _files() -> list[Path]:
    import data_store

    folders = [Path(pydicom.data.__file__).parent, Path(data_store.__file__).parent]
    files = (path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in files if path.name not in _WITHOUT_REFERENCE and _has_pixels(path)]


def _has_pixels(path: Path) -> bool:
    data = path.read_bytes()
    if data[128:132] != b"DICM":
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return "PixelData" in pydicom.dcmread(path, specific_tags=["PixelData"])
        except (EOFError, ValueError):
            return False


FILES = _files()


def _reference(path: Path) -> NDArray[Any]:
    dataset = pydicom.dcmread(path)
    syntax = dataset.file_meta.TransferSyntaxUID
    plugin = "pydicom" if syntax == RLELossless else "gdcm"
    return pixel_array(dataset, index=int(dataset.get("NumberOfFrames", 1)) // 2, decoding_plugin=plugin)


def _decode(data: bytes, monkeypatch: pytest.MonkeyPatch) -> NDArray[Any]:
    """The stored pixels that are on the way to the image."""
    frames: list[NDArray[Any]] = []
    stored_pixels = dicom_pixels.stored_pixels

    def watched(dataset: pydicom.Dataset, frame: int) -> tuple[NDArray[Any], str]:
        values, photometric = stored_pixels(dataset, frame)
        frames.append(values.copy())
        return values, photometric

    monkeypatch.setattr(decoder, "stored_pixels", watched)
    monkeypatch.setattr(decoded_image, "MIN_SIDE", 1)
    decode(data, load_settings(max_image_bytes=32 * 1024**2))
    return frames[0]


def test_all_files_are_there() -> None:
    assert len(FILES) == 166


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(path.parts[-3:]))
def test_pixels_equal_those_of_another_decoder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = _decode(path.read_bytes(), monkeypatch)
    reference = _reference(path)
    assert values.shape == reference.shape
    assert np.array_equal(values, reference)


RAMP = np.tile(np.arange(0, 4096, 64, dtype=np.uint16), (32, 1))
GREY = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
PAD = b"\0\0\xff\0"


@pytest.mark.parametrize(
    ("syntax", "frame"),
    [
        (JPEGLosslessSV1, imagecodecs.jpeg8_encode(RAMP, lossless=True, predictor=1, bitspersample=12)),
        (JPEGLSLossless, imagecodecs.jpegls_encode(RAMP)),
        (HTJ2KLossless, imagecodecs.htj2k_encode(RAMP, reversible=True)),
    ],
    ids=["jpeg lossless of 12 bits", "jpeg-ls", "high-throughput jpeg 2000"],
)
@pytest.mark.parametrize("frames", [1, 5])
def test_compressed_frames(syntax: str, frame: bytes, frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = RAMP if frames == 1 else np.stack([RAMP] * frames)
    data = dicom(pixels, syntax=syntax, frame=frame, BitsStored=12, HighBit=11)
    assert np.array_equal(_decode(data, monkeypatch), RAMP)


def test_boxes_around_jpeg_2000_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second box has no length, in which pydicom would search for ever."""
    signature = b"\0\0\0\x0cjP  \r\n\x87\n"
    frame = signature + b"\0\0\0\0ftyp" + bytes(imagecodecs.jpeg2k_encode(RAMP, codecformat="j2k", reversible=True))
    assert np.array_equal(_decode(dicom(RAMP, syntax=JPEG2000Lossless, frame=frame), monkeypatch), RAMP)


def test_jpeg_of_twelve_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The JPEG Extended file against the lossless one of the same image."""
    import data_store

    folder = Path(pydicom.data.__file__).parent / "test_files"
    extended = _decode((folder / "JPGExtended.dcm").read_bytes(), monkeypatch)
    lossless = _decode((Path(data_store.__file__).parent / "data" / "JPEG-LL.dcm").read_bytes(), monkeypatch)
    assert extended.shape == lossless.shape == (1024, 256)
    assert np.abs(extended.astype(int) - lossless.astype(int)).mean() < 3
    assert np.corrcoef(extended.ravel(), lossless.ravel())[0, 1] > 0.98


_SMALL = (
    "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm", "SC_rgb_jpeg.dcm",
    "SC_rgb_jpeg_gdcm.dcm", "JPGExtended.dcm", "image_dfl.dcm", "liver_1frame.dcm", "examples_palette.dcm",
)  # fmt: skip


@pytest.mark.parametrize("name", _SMALL)
def test_damaged_files_are_read_or_refused(name: str) -> None:
    original = (Path(pydicom.data.__file__).parent / "test_files" / name).read_bytes()
    generator = np.random.default_rng(len(original))
    settings = load_settings(max_image_bytes=2 * 1024**2)
    for round_ in range(25):
        data = np.frombuffer(original, dtype=np.uint8).copy()
        end = len(data) if round_ % 2 else min(len(data), 3000)  # every second time in the header
        data[generator.integers(0, end, 1 + round_)] = generator.integers(0, 256, 1 + round_)
        with suppress(ApiError):
            assert decode(data.tobytes(), settings).image.mode in ("L", "RGB")


_CUT_BY_DECODERS = [
    (JPEGBaseline8Bit, imagecodecs.jpeg8_encode(GREY, level=90)),
    (JPEGExtended12Bit, imagecodecs.jpeg8_encode(RAMP, level=90, bitspersample=12)),
    (JPEGLosslessSV1, imagecodecs.jpeg8_encode(RAMP, lossless=True, predictor=1, bitspersample=12)),
]


@pytest.mark.parametrize("share", [0.999, 0.9, 0.5])
@pytest.mark.parametrize(("syntax", "frame"), _CUT_BY_DECODERS, ids=["baseline", "12 bits", "lossless"])
def test_a_jpeg_frame_that_is_cut_is_refused(syntax: str, frame: bytes, share: float) -> None:
    """libjpeg fills it up without a word."""
    pixels = GREY if syntax == JPEGBaseline8Bit else RAMP
    cut = frame[: int(len(frame) * share)]
    with pytest.raises(ApiError, match=r"are cut: they have no end\.") as caught:
        read(dicom(pixels, syntax=syntax, frame=cut))
    assert caught.value.status == 422
    whole, padded = (np.asarray(read(dicom(pixels, syntax=syntax, frame=data)).image) for data in (frame, frame + PAD))
    assert np.array_equal(padded, whole)


def _rle(pixels: NDArray[Any], surplus: bytes = b"", behind: bytes = b"") -> bytes:
    """An RLE frame whose segments have more pixels, or bytes that stand for none, than they need."""
    planes = [pixels.astype(f">u{pixels.dtype.itemsize}").reshape(-1, 1).view(np.uint8)[:, byte] for byte in range(2)]
    segments = [bytes(imagecodecs.packbits_encode(plane.tobytes() + surplus)) + behind for plane in planes]
    offsets = np.zeros(16, dtype="<u4")
    offsets[:3] = 2, 64, 64 + len(segments[0])
    return offsets.tobytes() + b"".join(segments)


@pytest.mark.parametrize(("surplus", "behind"), [(b"", b""), (b"\0", b""), (bytes(64), b""), (b"", b"\0"), (b"", PAD)])
def test_rle_segments_may_be_longer_than_the_image(
    surplus: bytes, behind: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dicom(RAMP, syntax=RLELossless, frame=_rle(RAMP, surplus, behind))
    assert np.array_equal(_decode(data, monkeypatch), RAMP)


@pytest.mark.parametrize("rows", [31, 16])
def test_rle_segments_that_are_shorter_than_the_image_are_refused(rows: int) -> None:
    """The rest was black."""
    with pytest.raises(ApiError, match="RLE Lossless pixel data of the DICOM file are cut or damaged"):
        read(dicom(RAMP, syntax=RLELossless, frame=_rle(RAMP[:rows])))


def _tiled(tiles: int) -> bytes:
    """A JPEG 2000 frame of 64 x 64 pixels in four tiles, of which the first ones are left."""
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, "JPEG2000", tile_size=(32, 32), no_jp2=True, irreversible=False)
    starts = [match.start() for match in re.finditer(rb"\xff\x90\0\x0a", buffer.getvalue())]
    assert len(starts) == 4
    return buffer.getvalue()[: starts[tiles]] + b"\xff\xd9" if tiles < 4 else buffer.getvalue()


def test_tiles_of_jpeg_2000_that_are_missing_are_not_black(monkeypatch: pytest.MonkeyPatch) -> None:
    assert np.array_equal(_decode(dicom(GREY, syntax=JPEG2000Lossless, frame=_tiled(4)), monkeypatch), GREY)
    for tiles in (3, 1):
        with pytest.raises(ApiError, match=f"is cut: {tiles} of its 4 tiles are there") as caught:
            read(dicom(GREY, syntax=JPEG2000Lossless, frame=_tiled(tiles)))
        assert caught.value.status == 422


def test_parts_of_a_tile_that_are_missing_are_found_out() -> None:
    frame = bytearray(_tiled(4))
    at = frame.index(b"\xff\x90\0\x0a")
    assert frame[at + 11] in (0, 1)
    frame[at + 11] = 3  # tile-parts
    with pytest.raises(ApiError, match="parts of its tiles are missing"):
        read(dicom(GREY, syntax=JPEG2000Lossless, frame=frame))


def test_a_tile_without_a_length_needs_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = bytearray(imagecodecs.jpeg2k_encode(GREY, codecformat="j2k", reversible=True))
    at = frame.index(b"\xff\x90\0\x0a")
    frame[at + 6 : at + 10] = bytes(4)
    assert np.array_equal(_decode(dicom(GREY, syntax=JPEG2000Lossless, frame=frame), monkeypatch), GREY)
    with pytest.raises(ApiError, match="is cut: it has no end"):
        read(dicom(GREY, syntax=JPEG2000Lossless, frame=frame[:-12]))
