"""DICOM files that are read: syntaxes, colours, frames, headers and shapes."""

import logging
import re
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom.data
import pytest
from numpy.typing import NDArray
from pydicom.uid import ImplicitVRLittleEndian

from app.core.exceptions import ApiError
from tests.serving.decode.dicom_files import (
    PATIENT,
    RAMP,
    dicom,
    functional_group,
    jpeg,
    palette,
    read,
    shown,
)
from tests.serving.hostile_files import JPEG_2000, JPEG_BASELINE, JPEG_LOSSLESS

GREY = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))


def test_the_window_of_the_file_is_used() -> None:
    hounsfield = RAMP * 10  # 0 to 630, stored with an offset of 1000
    data = dicom(
        (hounsfield + 1000).astype(np.int16),
        RescaleSlope=1,
        RescaleIntercept=-1000,
        WindowCenter=[300, 40],
        WindowWidth=[201, 400],
    )
    decoded = read(data)
    values = np.asarray(decoded.image)
    assert values.shape == (32, 64)
    assert values.dtype == np.uint8
    assert values[0, :20].max() == 0  # at most 190, below the window of 200 to 400
    assert values[0, 41:].min() == 255
    assert values[0, 30] == pytest.approx(128, abs=1)
    assert decoded.info.notes == ("The DICOM file was read with its window: centre 300, width 201.",)
    assert (decoded.info.width, decoded.info.height, decoded.info.mode) == (64, 32, "DICOM MONOCHROME2")


def test_without_a_window_the_whole_range_is_used() -> None:
    decoded = read(dicom(RAMP))
    assert (decoded.image.getextrema(), "no window" in decoded.info.notes[0]) == ((0, 255), True)
    assert read(dicom(RAMP * 0 + 7)).image.getextrema() == (0, 0)


def test_monochrome1_is_inverted() -> None:
    upright = np.asarray(read(dicom(RAMP)).image)
    inverted = np.asarray(read(dicom(RAMP, PhotometricInterpretation="MONOCHROME1")).image)
    assert np.array_equal(inverted, 255 - upright)


def test_the_middle_frame_is_decoded_and_that_is_said() -> None:
    frames = np.stack([RAMP, RAMP, RAMP.max() - RAMP, RAMP, RAMP])
    decoded = read(dicom(frames))
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
        assert read(data).image.getextrema() == (0, 255)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(data) + 40_000_000  # the parts of a strip
    finally:
        tracemalloc.stop()


def test_colour_is_read() -> None:
    colour = np.zeros((32, 40, 3), dtype=np.uint8)
    colour[..., 0] = 200
    decoded = read(dicom(colour))
    assert (decoded.image.mode, decoded.image.getpixel((3, 3))) == ("RGB", (200, 0, 0))


@pytest.mark.parametrize(("syntax", "kind"), [(JPEG_BASELINE, "JPEG"), (JPEG_2000, "JPEG2000")])
def test_compressed_files_are_read(syntax: str, kind: str) -> None:
    values = np.asarray(read(dicom(GREY, syntax=syntax, frame=jpeg(GREY, kind))).image)
    plain = np.asarray(read(dicom(GREY)).image)
    assert np.abs(values.astype(int) - plain.astype(int)).max() < 12


@pytest.mark.parametrize("tags", [{}, {"BitsAllocated": 7}, {"WindowWidth": 0}, {"NumberOfFrames": 50}])
def test_no_word_about_the_patient_leaves_the_decoder(tags: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        try:
            decoded = repr(read(dicom(RAMP, **tags)))
        except ApiError as error:
            decoded = f"{error.detail} {error.__cause__} {error.members}"
    for word in (PATIENT, "Doe", "4711"):
        assert word not in decoded
        assert word not in caplog.text


@pytest.mark.parametrize(
    ("tags", "size"),
    [
        ({"PixelSpacing": [1, 0.5]}, (64, 64)),
        ({"PixelSpacing": [0.5, 1]}, (128, 32)),
        ({"ImagerPixelSpacing": [0.2, 0.1]}, (64, 64)),
        ({"NominalScannedPixelSpacing": [0.2, 0.1]}, (64, 64)),
        ({"PixelAspectRatio": [2, 1]}, (64, 64)),
        ({"PixelSpacing": [0.5, 0.501]}, (64, 32)),
        ({"PixelSpacing": [1, 0]}, (64, 32)),
        ({"PixelSpacing": [1000, 1]}, (64, 32)),
        (
            {"SharedFunctionalGroupsSequence": [functional_group("PixelMeasuresSequence", PixelSpacing=[1, 0.5])]},
            (64, 64),
        ),
    ],
)
def test_pixels_become_square(tags: dict[str, Any], size: tuple[int, int]) -> None:
    decoded = read(dicom(RAMP, **tags))
    assert decoded.image.size == size
    assert (decoded.info.width, decoded.info.height) == (64, 32)
    assert any("resampled to square" in note for note in decoded.info.notes) == (size != (64, 32))


def test_files_without_preamble_or_meta_header() -> None:
    whole = dicom(RAMP)
    expected = np.asarray(read(whole).image)
    body = whole[whole.index(b"\x08\0\x16\0UI") :]
    for data in (whole[128:], whole[132:], body):
        assert np.array_equal(np.asarray(read(data).image), expected)


def test_compressed_pixels_without_meta_header_are_not_said_to_contradict_it() -> None:
    whole = (Path(pydicom.data.__file__).parent / "test_files" / "MR_small_RLE.dcm").read_bytes()
    with pytest.raises(ApiError, match="its pixel data are compressed, and it does not say how") as caught:
        read(whole[whole.index(b"\x08\0\x08\0CS") :])
    assert (caught.value.status, "transfer syntax is" in caught.value.detail) == (422, False)


@pytest.mark.parametrize(
    ("name", "first"), [("MR_small_implicit.dcm", b"\x08\0\x08\0"), ("MR_small_bigendian.dcm", b"\0\x08\0\x08CS")]
)
def test_the_encoding_of_a_file_without_meta_header_is_found(name: str, first: bytes) -> None:
    whole = (Path(pydicom.data.__file__).parent / "test_files" / name).read_bytes()
    body = whole[whole.index(first) :]
    assert np.array_equal(np.asarray(read(body).image), np.asarray(read(whole).image))


@pytest.mark.parametrize("bits", [8, 16])
def test_palette_colours(bits: int) -> None:
    scale = 257 if bits == 16 else 1
    reds, greens, blues = (np.arange(256) * scale, np.full(256, 9 * scale), np.arange(256)[::-1] * scale)
    image = read(dicom(GREY, **palette(reds, greens, blues, bits))).image
    assert image.mode == "RGB"
    assert [image.getpixel((column, 0)) for column in (0, 1, 63)] == [(0, 9, 255), (4, 9, 251), (252, 9, 3)]


@pytest.mark.parametrize("entries", [200, 128, 100])
def test_a_palette_of_fewer_entries_than_it_says_is_refused(entries: int) -> None:
    """Its words were read as bytes."""
    table = np.arange(entries) * 257
    tags = palette(table, table, table)
    for name in ("Red", "Green", "Blue"):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
    with pytest.raises(ApiError, match="its table for red has not 256 entries"):
        read(dicom(GREY, **tags))


def test_a_palette_of_signed_pixels() -> None:
    table = np.arange(256) * 257
    tags = palette(table, table, table)
    for name in ("Red", "Green", "Blue"):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, -128, 16]
    data = dicom((GREY.astype(np.int16) - 128).astype(np.int8), syntax=ImplicitVRLittleEndian, **tags)
    assert np.array_equal(np.asarray(read(data).image)[..., 0], GREY)
    written_as_unsigned = dicom((GREY.astype(np.int16) - 128).astype(np.int8), **tags)
    wrong = re.sub(rb"(\x28\0.\x11)SS", rb"\1US", written_as_unsigned)
    assert wrong != written_as_unsigned
    assert np.array_equal(np.asarray(read(wrong).image)[..., 0], GREY)


def test_segmented_palette() -> None:
    """Discrete 0 0, linear to 100 and back, and both again: PS3.3 C.7.9.2."""
    words = np.array([0, 2, 0, 0, 1, 50, 25600, 1, 50, 0, 2, 2, 8, 0], dtype="<u2")
    tags: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name in ("Red", "Green", "Blue"):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [202, 0, 16]
        tags[f"Segmented{name}PaletteColorLookupTableData"] = words.tobytes()
    image = np.asarray(read(dicom(GREY, **tags)).image)
    rising = [0, 0, *range(2, 101, 2)]
    table = [*rising, *range(98, -1, -2), *range(2, 101, 2), *range(98, -1, -2)]
    expected = [table[min(value, 201)] for value in range(0, 256, 4)]
    assert image[0, :, 0].tolist() == expected


def test_colour_of_twelve_bits_is_stretched() -> None:
    colour = np.zeros((32, 64, 3), dtype=np.uint16)
    colour[..., 0], colour[..., 1] = RAMP * 65, 2000
    image = np.asarray(read(dicom(colour, BitsStored=12, HighBit=11)).image)
    assert (image[0, -1, 0], image[0, 0, 0], image[0, 0, 2]) == (255, 0, 0)
    assert image[0, 0, 1] == pytest.approx(2000 / 4095 * 255, abs=2)


def test_a_segmentation_of_one_bit() -> None:
    mask = np.zeros((32, 64), dtype=np.uint8)
    mask[10, 20] = 1  # fewer than a percentile
    data = dicom(
        mask, PixelData=np.packbits(mask, bitorder="little").tobytes(), BitsAllocated=1, BitsStored=1, HighBit=0
    )
    decoded = read(data)
    assert np.array_equal(np.asarray(decoded.image), mask * 255)
    assert "lowest to highest value: 0 to 1" in decoded.info.notes[0]


@pytest.mark.parametrize(
    ("stored", "tags"),
    [
        (RAMP.astype(np.uint16) << 4, {"BitsStored": 12, "HighBit": 15}),
        (RAMP.astype(np.uint16) << 2, {"BitsStored": 12, "HighBit": 13}),
        ((RAMP - 32) << 4, {"BitsStored": 12, "HighBit": 15, "PixelPaddingValue": -3000}),
        # The header is wrong: the lowest bits are in use.
        (RAMP.astype(np.uint16), {"BitsStored": 12, "HighBit": 15}),
        (RAMP.astype(np.uint16), {"BitsStored": 12, "HighBit": 99}),
        # An overlay in a bit that is not stored.
        (RAMP.astype(np.uint16) | 0x8000, {"BitsStored": 12, "HighBit": 11}),
    ],
)
def test_values_in_other_bits_than_the_lowest(stored: NDArray[Any], tags: dict[str, Any]) -> None:
    levels, _ = shown(stored, **tags)
    assert np.array_equal(levels, shown(RAMP)[0])


def test_rows_that_are_fewer_than_there_are_in_the_data_are_told() -> None:
    assert "more pixel data in the DICOM file than its header says" in shown(RAMP, Rows=20)[1]
    assert "more pixel data" not in shown(RAMP[:, :63].astype(np.uint8))[1]  # a byte of padding


@pytest.mark.parametrize(
    ("surplus", "is_told"),
    [
        (b"", False),
        (bytes(2), False),
        (bytes(64), False),
        (b"\1\0", True),
        (bytes(62) + b"\1\0", True),
        (bytes(130), True),
    ],
)
def test_rows_that_may_be_longer_than_the_header_says_are_told(surplus: bytes, is_told: bool) -> None:
    _, notes = shown(RAMP, PixelData=RAMP.tobytes() + surplus)
    assert ("more pixel data in the DICOM file than its header says" in notes) == is_told


def test_a_column_too_few_is_told() -> None:
    """The image is sheared, and the surplus can be less than a row."""
    assert "more pixel data" in shown(RAMP, Columns=63)[1]


@pytest.mark.parametrize("photometric", ["YBR_RCT", "YBR_ICT"])
def test_jpeg_2000_colours_of_sixteen_bits(photometric: str) -> None:
    """OpenJPEG undoes both transforms; the values are those of the RGB that was compressed."""
    colour = np.stack([np.tile(np.arange(64, dtype=np.uint16) * step, (32, 1)) for step in (60, 30, 10)], axis=-1)
    reversible = photometric == "YBR_RCT"
    frame = imagecodecs.jpeg2k_encode(colour, level=0, codecformat="j2k", reversible=reversible, mct=True)
    data = dicom(
        colour, syntax=JPEG_2000, frame=frame, PhotometricInterpretation=photometric, BitsStored=12, HighBit=11
    )
    plain = dicom(colour, BitsStored=12, HighBit=11)
    images = [np.asarray(read(one).image).astype(int) for one in (data, plain)]
    assert np.abs(images[0] - images[1]).max() <= (0 if reversible else 1)


@pytest.mark.parametrize(
    ("syntax", "name"),
    [("1.2.840.10008.1.2.4.110", "JPEG XL Lossless"), ("1.2.840.10008.1.2.8.1", "Deflated Image Frame Compression")],
)
def test_newer_transfer_syntaxes_are_named(syntax: str, name: str) -> None:
    private = "1.2.3." + "4" * (len(syntax) - 6)  # pydicom writes those alone that it knows, and private ones
    data = dicom(GREY, syntax=private, frame=bytes(100)).replace(private.encode(), syntax.encode())
    with pytest.raises(ApiError, match=f"encoded as {name} \\({re.escape(syntax)}\\)") as caught:
        read(data)
    assert caught.value.status == 415


@pytest.mark.parametrize(("modality", "expected"), [("MR", "MR"), (" ct", "CT"), ("<b>", None), (None, None)])
def test_the_modality_of_the_header(modality: str | None, expected: str | None) -> None:
    assert read(dicom(RAMP, Modality=modality)).info.header_modality == expected


def test_a_long_value_is_read_up_to_what_is_used() -> None:
    """Without a VR a value can be as long as the file."""
    data = dicom(RAMP, syntax=ImplicitVRLittleEndian, WindowCenter="77777777", WindowWidth=20, Modality="CT")
    centres = b"32" + b"\\32" * 1_000_000 + b" " * 2
    element = b"\x28\0\x50\x10"
    long = data.replace(element + b"\x08\0\0\x0077777777", element + struct.pack("<I", len(centres)) + centres)
    assert len(long) > 3_000_000
    tracemalloc.start()
    try:
        decoded = read(long)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(long)
    finally:
        tracemalloc.stop()
    assert "centre 32, width 20." in decoded.info.notes[0]


def test_bits_stored_is_at_least_that_of_the_compressed_frame() -> None:
    """16 bits in the frame and 12 in the header: the upper four were lost."""
    values = np.tile(np.arange(64, dtype=np.uint16) * 1000, (32, 1))
    frame = imagecodecs.jpeg8_encode(values, lossless=True, bitspersample=16)
    levels, _ = shown(values, syntax=JPEG_LOSSLESS, frame=frame, BitsStored=12, HighBit=11)
    assert np.array_equal(levels, shown(values)[0])


def test_bits_stored_tells_where_the_sign_of_a_compressed_frame_is() -> None:
    """Negative values of 12 bits in a frame of 16 bits."""
    values = RAMP * 10 - 300
    frame = imagecodecs.jpeg8_encode(values.astype(np.uint16) & 0xFFF, lossless=True, bitspersample=16)
    levels, _ = shown(values, syntax=JPEG_LOSSLESS, frame=frame, BitsStored=12, HighBit=11)
    assert np.array_equal(levels, shown(values)[0])
