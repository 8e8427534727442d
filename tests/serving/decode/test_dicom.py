import logging
import tracemalloc
from typing import Any

import numpy as np
import pytest

from app.core.exceptions import ApiError
from app.core.settings import load_settings
from app.serving.decode.decoded_image import DecodedImage
from app.serving.decode.image import decode
from tests.serving.decode.dicom_files import PATIENT, dicom, jpeg
from tests.serving.hostile_files import JPEG_2000, JPEG_BASELINE

RAMP = np.tile(np.arange(64, dtype=np.int16), (32, 1))
GREY = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))


def _decode(data: bytes) -> DecodedImage:
    return decode(data, load_settings())


def test_the_window_of_the_file_is_used() -> None:
    hounsfield = RAMP * 10  # 0 to 630, stored with an offset of 1000
    data = dicom(
        (hounsfield + 1000).astype(np.int16),
        RescaleSlope=1,
        RescaleIntercept=-1000,
        WindowCenter=[300, 40],
        WindowWidth=[201, 400],
    )
    decoded = _decode(data)
    values = np.asarray(decoded.image)
    assert values.shape == (32, 64)
    assert values.dtype == np.uint8
    assert values[0, :20].max() == 0  # at most 190, below the window of 200 to 400
    assert values[0, 41:].min() == 255
    assert values[0, 30] == pytest.approx(128, abs=1)
    assert decoded.info.notes == ("The DICOM file was read with its window: centre 300, width 201.",)
    assert (decoded.info.width, decoded.info.height, decoded.info.mode) == (64, 32, "DICOM MONOCHROME2")


def test_without_a_window_the_whole_range_is_used() -> None:
    decoded = _decode(dicom(RAMP))
    assert (decoded.image.getextrema(), "no window" in decoded.info.notes[0]) == ((0, 255), True)
    assert _decode(dicom(RAMP * 0 + 7)).image.getextrema() == (0, 0)


def test_monochrome1_is_inverted() -> None:
    upright = np.asarray(_decode(dicom(RAMP)).image)
    inverted = np.asarray(_decode(dicom(RAMP, PhotometricInterpretation="MONOCHROME1")).image)
    assert np.array_equal(inverted, 255 - upright)


def test_the_middle_frame_is_judged_and_that_is_said() -> None:
    frames = np.stack([RAMP, RAMP, RAMP.max() - RAMP, RAMP, RAMP])
    decoded = _decode(dicom(frames))
    assert "5 frames; frame 3" in decoded.info.notes[0]
    values = np.asarray(decoded.image)
    assert values[0, 0] == 255
    assert values[0, -1] == 0


@pytest.mark.parametrize("tags", [{}, {"WindowCenter": 2000, "WindowWidth": 4000}])
def test_a_large_file_takes_little_memory(tags: dict[str, Any]) -> None:
    pixels = np.arange(2200 * 2200, dtype=np.uint32).astype(np.uint16).reshape(2200, 2200)
    data = dicom(pixels, RescaleSlope=1, RescaleIntercept=-1000, **tags)
    tracemalloc.start()
    try:
        assert _decode(data).image.getextrema() == (0, 255)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(data) + 40_000_000  # the parts of a strip
    finally:
        tracemalloc.stop()


def test_colour_is_read() -> None:
    colour = np.zeros((32, 40, 3), dtype=np.uint8)
    colour[..., 0] = 200
    decoded = _decode(dicom(colour))
    assert (decoded.image.mode, decoded.image.getpixel((3, 3))) == ("RGB", (200, 0, 0))


@pytest.mark.parametrize(("syntax", "kind"), [(JPEG_BASELINE, "JPEG"), (JPEG_2000, "JPEG2000")])
def test_compressed_files_are_read(syntax: str, kind: str) -> None:
    values = np.asarray(_decode(dicom(GREY, syntax=syntax, frame=jpeg(GREY, kind))).image)
    plain = np.asarray(_decode(dicom(GREY)).image)
    assert np.abs(values.astype(int) - plain.astype(int)).max() < 12


@pytest.mark.parametrize("tags", [{}, {"BitsAllocated": 7}, {"WindowWidth": 0}, {"NumberOfFrames": 50}])
def test_no_word_about_the_patient_leaves_the_decoder(tags: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        try:
            told = repr(_decode(dicom(RAMP, **tags)))
        except ApiError as error:
            told = f"{error.detail} {error.__cause__} {error.members}"
    for word in (PATIENT, "Doe", "4711"):
        assert word not in told
        assert word not in caplog.text
