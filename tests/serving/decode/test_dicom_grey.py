"""The grey levels of a DICOM file: padding, rescale, windows and lookup tables."""

import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels import processing
from pydicom.uid import ImplicitVRLittleEndian

from app.serving.decode import dicom_grey
from tests.serving.decode.dicom_files import RAMP, dicom, functional_group, lookup_table, read, shown

SIGNED = (RAMP * 10 - 100).astype(np.int16)  # -100 to 530 from left to right


@pytest.mark.parametrize(
    "tags",
    [
        {"PixelPaddingValue": -2000},
        {"PixelPaddingValue": -2000, "WindowCenter": 215, "WindowWidth": 630},
        {"PixelPaddingValue": -2000, "PhotometricInterpretation": "MONOCHROME1"},
        {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -3000},
        {"PixelPaddingValue": -3000, "PixelPaddingRangeLimit": -1900},
    ],
)
def test_padding_is_black_and_left_out_of_the_range(tags: dict[str, Any]) -> None:
    padded = np.pad(SIGNED, 16, constant_values=-2000)
    levels, notes = shown(padded, **tags)
    inner = levels[16:-16, 16:-16].copy()
    levels[16:-16, 16:-16] = 0
    assert levels.max() == 0
    bare = {name: value for name, value in tags.items() if "Padding" not in name}
    assert np.abs(inner.astype(int) - shown(SIGNED, **bare)[0]).max() <= 1
    assert "padding around the image was left out" in notes


def test_padding_that_is_written_as_an_unsigned_value() -> None:
    data = dicom(np.pad(SIGNED, 16, constant_values=-2000), PixelPaddingValue=-2000)
    wrong = data.replace(b"\x28\0\x20\x01SS", b"\x28\0\x20\x01US")
    assert wrong != data
    assert np.array_equal(np.asarray(read(wrong).image), np.asarray(read(data).image))


def test_outliers_do_not_decide_where_there_is_no_window() -> None:
    spoiled = SIGNED.copy()
    spoiled[5, 10:13] = 30000
    levels, notes = shown(spoiled)
    clean, _ = shown(SIGNED)
    assert np.abs(levels[8].astype(int) - clean[8]).max() <= 2
    assert "0.5th to its 99.5th percentile: -100 to 530" in notes


@pytest.mark.parametrize(
    ("slope", "intercept", "centre"),
    [(b"2", b"", b"630"), (b"", b"-1000", b"-685"), (b"0,5 ", b"1,5 ", b"159"), (b"2", b"-1000", b"-370")],
)
def test_rescale_that_is_empty_or_has_a_decimal_comma(slope: bytes, intercept: bytes, centre: bytes) -> None:
    tags: dict[str, Any] = {
        "RescaleSlope": "7777",
        "RescaleIntercept": "8888",
        "WindowCenter": "6666",
        "WindowWidth": 200,
    }
    data = dicom(RAMP * 10, **tags)
    for placeholder, value in ((b"7777", slope), (b"8888", intercept), (b"6666", centre)):
        padded = value + b" " * (len(value) % 2)
        data = data.replace(b"DS\4\0" + placeholder, b"DS" + struct.pack("<H", len(padded)) + padded)
    decoded = read(data)
    factor = float(slope.replace(b",", b".") or 1)
    offset = float(intercept.replace(b",", b".") or 0)
    expected = np.clip((RAMP[0] * 10 * factor + offset - (float(centre) - 0.5)) / 199 + 0.5, 0, 1) * 255
    assert np.abs(np.asarray(decoded.image)[0] - expected).max() <= 1
    assert "read with its window" in decoded.info.notes[0]


@pytest.mark.parametrize("slope", ["0", "NaN", "x"])
def test_a_slope_that_cannot_be_used_is_left_out_with_its_window(slope: str) -> None:
    tags: dict[str, Any] = {"RescaleSlope": "7777", "RescaleIntercept": 0, "WindowCenter": 9, "WindowWidth": 2}
    padded = slope.encode() + b" " * (len(slope) % 2)
    data = dicom(RAMP, **tags).replace(b"DS\4\x007777", b"DS" + struct.pack("<H", len(padded)) + padded)
    decoded = read(data)
    assert np.array_equal(np.asarray(decoded.image), shown(RAMP)[0])
    assert "rescale slope or intercept cannot be used" in decoded.info.notes[0]


def _window(centre: float, width: float) -> NDArray[Any]:
    levels: NDArray[Any] = np.clip((RAMP[0] - centre) / width + 0.5, 0, 1) * 255
    return levels


@pytest.mark.parametrize(
    ("tags", "expected", "note"),
    [
        ({"WindowCenter": 32, "WindowWidth": 20, "VOILUTFunction": "LINEAR_EXACT"}, _window(32, 20), "LINEAR_EXACT"),
        ({"WindowCenter": 32, "WindowWidth": 20, "VOILUTFunction": "LINEAR"}, _window(31.5, 19), "width 20."),
        ({"WindowCenter": 32, "WindowWidth": 20, "VOILUTFunction": "CUBIC"}, _window(31.5, 19), "width 20."),
        (
            {"WindowCenter": 32, "WindowWidth": 20, "VOILUTFunction": "SIGMOID"},
            255 / (1 + np.exp(-4 * (RAMP[0] - 32.0) / 20)),
            "SIGMOID",
        ),
        ({"WindowCenter": 32, "WindowWidth": 0.5}, _window(32, 0.5), "width 0.5, LINEAR_EXACT"),
        ({"WindowCenter": 32, "WindowWidth": 0}, _window(31.5, 63), "no window that can be used"),
        ({"WindowCenter": [0, 32], "WindowWidth": [-5, 20]}, _window(31.5, 19), "centre 32, width 20."),
        ({"WindowCenter": 4000, "WindowWidth": 20}, _window(31.5, 63), "shows no contrast and was not used"),
        ({"WindowCenter": [4000, 32], "WindowWidth": [20, 20]}, _window(31.5, 19), "centre 32, width 20."),
        (
            {
                "SharedFunctionalGroupsSequence": [
                    functional_group("FrameVOILUTSequence", WindowCenter=32, WindowWidth=20)
                ],
                "WindowCenter": 4000,
                "WindowWidth": 20,
            },
            _window(31.5, 19),
            "centre 32, width 20.",
        ),
        (
            {
                "VOILUTSequence": [lookup_table(np.arange(64)[::-1] * 1000, first=0, bits=16)],
                "WindowCenter": 32,
                "WindowWidth": 20,
            },
            (63.0 - RAMP[0]) * 1000 / 65535 * 255,
            "VOI lookup table",
        ),
        # 8 bits per entry, 300 entries and a negative first input: these wrapped around.
        (
            {"VOILUTSequence": [lookup_table(np.arange(300) // 2, first=-100, bits=8)]},
            (RAMP[0] + 100) // 2,
            "VOI lookup table",
        ),
        (
            {
                "ModalityLUTSequence": [lookup_table(np.arange(64) * 3, first=0, bits=16)],
                "WindowCenter": 96,
                "WindowWidth": 60,
            },
            np.clip((RAMP[0] * 3 - 95.5) / 59 + 0.5, 0, 1) * 255,
            "centre 96, width 60.",
        ),
        (
            {"WindowCenter": 32, "WindowWidth": 20, "PresentationLUTShape": "INVERSE"},
            255 - _window(31.5, 19),
            "width 20",
        ),
        (
            {
                "WindowCenter": 32,
                "WindowWidth": 20,
                "PresentationLUTShape": "INVERSE",
                "PhotometricInterpretation": "MONOCHROME1",
            },
            255 - _window(31.5, 19),
            "width 20",
        ),
    ],
)
def test_windows_and_lookup_tables(tags: dict[str, Any], expected: NDArray[Any], note: str) -> None:
    levels, notes = shown(RAMP, **tags)
    assert np.abs(levels[0] - expected).max() <= 1
    assert note in notes


def test_each_frame_has_its_own_rescale_and_window() -> None:
    groups = []
    for frame in range(3):
        group = functional_group("FrameVOILUTSequence", WindowCenter=1000 * frame + 32, WindowWidth=20)
        inner = Dataset()
        inner.RescaleSlope, inner.RescaleIntercept = 1, 1000 * frame
        group.PixelValueTransformationSequence = [inner]
        groups.append(group)
    levels, notes = shown(np.stack([RAMP] * 3), PerFrameFunctionalGroupsSequence=groups)
    assert "frame 2" in notes
    assert "centre 1032, width 20." in notes
    assert np.abs(levels[0] - _window(31.5, 19)).max() <= 1


def test_only_the_first_windows_are_tried() -> None:
    """A window per value would take hours for all that fit into a file."""
    levels, notes = shown(RAMP, WindowCenter=[4000] * 3000, WindowWidth=[20] * 3000)
    assert (levels.min(), levels.max()) == (0, 255)
    assert notes.count("shows no contrast and was not used") == 16
    assert "no window that can be used" in notes


def test_windows_without_contrast_are_not_tried_on_all_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    windowing = processing.apply_windowing

    def watched(part: NDArray[Any], dataset: Dataset) -> NDArray[Any]:
        sizes.append(part.size)
        return windowing(part, dataset)

    monkeypatch.setattr(dicom_grey, "apply_windowing", watched)
    padded = np.pad(RAMP, 16, constant_values=5000)  # of which the window would show a contrast
    levels, notes = shown(padded, PixelPaddingValue=5000, WindowCenter=[4000, 32], WindowWidth=[20, 20])
    assert sizes == [2, 2, padded.size]
    assert "centre 32, width 20." in notes
    assert np.abs(levels[16, 16:-16] - _window(31.5, 19)).max() <= 1


def test_a_constant_image_is_black_whatever_its_windows() -> None:
    levels, notes = shown(RAMP * 0 + 7, WindowCenter=[7, 7], WindowWidth=[20, 1])
    assert levels.max() == 0
    assert notes.count("shows no contrast") == 2


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 265, "WindowWidth": 530}])
@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
def test_float_pixels_that_are_no_number_are_black_and_left_out_of_the_range(
    window: dict[str, Any], hole: float
) -> None:
    values = (RAMP * 10).astype(np.float32)
    values[4:8, 10:20] = hole
    tags: dict[str, Any] = {"PixelData": None, "FloatPixelData": values.tobytes()} | window
    levels, _ = shown(values.view(np.int32), BitsStored=32, **tags)
    assert levels[4:8, 10:20].max() == 0
    levels[4:8] = levels[12:16]
    expected = np.clip(RAMP * 10 / (530 if window else 630), 0, 1) * 255
    assert np.abs(levels.astype(float) - expected).max() <= 1


@pytest.mark.parametrize("tags", [{"RescaleSlope": "1e999"}, {"RescaleIntercept": "-1e999"}])
def test_an_infinite_rescale_is_not_used(tags: dict[str, Any]) -> None:
    levels, notes = shown(SIGNED, **({"RescaleSlope": "1", "RescaleIntercept": "0"} | tags))
    assert np.array_equal(levels, shown(SIGNED)[0])
    assert "cannot be used" in notes


@pytest.mark.parametrize(("kind", "dtype"), [("Float", np.float32), ("DoubleFloat", np.float64)])
def test_padding_of_float_pixels(kind: str, dtype: type) -> None:
    values: NDArray[Any] = np.pad((RAMP * 10).astype(dtype), 16, constant_values=-9999)
    bits = values.dtype.itemsize * 8
    tags: dict[str, Any] = {f"{kind}PixelData": values.tobytes(), f"{kind}PixelPaddingValue": -9999.0}
    levels, notes = shown(values.view(f"i{bits // 8}"), PixelData=None, **tags)
    assert np.abs(levels[16:-16, 16:-16] - RAMP / 63 * 255).max() <= 1
    assert levels[:16].max() == 0
    assert "padding around the image was left out" in notes


@pytest.mark.parametrize(
    ("padding", "pixel", "signed"),
    [(63536, 2096, False), (65535, 4095, False), (63536, 63536, False), (2096, -2000, True), (-3000, 1096, True)],
)
def test_padding_is_compared_in_the_bits_that_are_stored(padding: int, pixel: int, signed: bool) -> None:
    values = np.pad((RAMP * 10).astype(np.int16 if signed else np.uint16), 16, constant_values=pixel)
    levels, _ = shown(values, BitsStored=12, HighBit=11, PixelPaddingValue=padding)
    assert np.abs(levels[16:-16, 16:-16] - RAMP / 63 * 255).max() <= 1
    assert levels[:16].max() == 0


def test_a_range_of_padding_beyond_the_bits_that_are_stored_hides_no_bright_value() -> None:
    values = np.pad((RAMP * 30).astype(np.int16), 16, constant_values=-2000)
    levels, _ = shown(values, BitsStored=12, HighBit=11, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-3000)
    assert np.abs(levels[16:-16, 16:-16] - RAMP / 63 * 255).max() <= 1


def _table(descriptor: list[int] | None, data: bytes | None) -> Dataset:
    item = Dataset()
    if descriptor is not None:
        item.add_new("LUTDescriptor", "US", descriptor)
    if data is not None:
        item.add_new("LUTData", "OW", data)
    return item


_UNUSABLE = [
    _table([64, 0, 12], bytes(126)),
    _table([64, 0, 16], bytes(64)),
    _table([64, 0, 8], bytes(70)),
    _table([64, 0], bytes(128)),
    _table([64, 0, 20], bytes(128)),
    _table(None, bytes(128)),
    _table([64, 0, 12], b""),
    _table([64, 0, 12], None),
]


@pytest.mark.parametrize("item", _UNUSABLE)
def test_a_lookup_table_that_cannot_be_used_does_not_stop_the_file(item: Dataset) -> None:
    levels, notes = shown(RAMP, VOILUTSequence=[item], WindowCenter=32, WindowWidth=20)
    assert np.abs(levels[0] - _window(31.5, 19)).max() <= 1
    assert "VOI lookup table cannot be used" in notes
    assert "centre 32, width 20." in notes
    levels, notes = shown(RAMP, VOILUTSequence=[item])
    assert np.array_equal(levels, shown(RAMP)[0])
    assert "VOI lookup table cannot be used" in notes
    levels, notes = shown(RAMP, ModalityLUTSequence=[item], WindowCenter=32, WindowWidth=20)
    assert np.array_equal(levels, shown(RAMP)[0])
    assert "modality lookup table cannot be used; the values were read as they are stored" in notes


def test_an_empty_item_of_a_modality_lookup_table_stands_for_none() -> None:
    levels, _ = shown(RAMP, ModalityLUTSequence=[Dataset()], WindowCenter=32, WindowWidth=20)
    assert np.abs(levels[0] - _window(31.5, 19)).max() <= 1


def test_the_sign_of_the_first_input_where_no_vr_tells_it() -> None:
    """Unsigned pixels that an intercept makes negative."""
    tags: dict[str, Any] = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    tags["VOILUTSequence"] = [lookup_table(np.arange(64) * 1000, first=-1024, bits=16)]
    levels, notes = shown(RAMP.astype(np.uint16), syntax=ImplicitVRLittleEndian, **tags)
    assert np.abs(levels[0] - np.arange(64) * 1000 / 65535 * 255).max() <= 1
    assert "VOI lookup table" in notes
