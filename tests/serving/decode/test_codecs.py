"""Every file of pydicom and pydicom-data that pydicom decodes, against pydicom with another decoder (GDCM)."""

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
from pydicom.pixels.utils import pixel_array
from pydicom.uid import HTJ2KLossless, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from app.core.exceptions import ApiError
from app.core.settings import load_settings
from app.serving.decode import decoded_image, dicom_pixels
from app.serving.decode import dicom as decoder
from app.serving.decode.image import decode
from tests.serving.decode.dicom_files import dicom

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
