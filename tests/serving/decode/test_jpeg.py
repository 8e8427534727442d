import io

import pytest
from PIL import Image

from app.core.exceptions import UnprocessableError
from app.serving.decode.jpeg import MAX_SCANS, MAX_SEGMENTS, check_scans, without_metadata
from tests.serving.hostile_files import scan_bomb

SCAN = b"\xff\xda"


def _jpeg(**options: object) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(buffer, "JPEG", **options)
    return buffer.getvalue()


def test_a_bomb_is_small_and_whole_and_refused() -> None:
    bomb = scan_bomb(200, MAX_SCANS)
    assert len(bomb) < 50_000
    Image.open(io.BytesIO(bomb)).load()  # a decoder takes it: nothing but its scans is wrong
    with pytest.raises(UnprocessableError, match="more than 100 scans"):
        check_scans(bomb)


def test_as_many_scans_as_encoders_write_pass() -> None:
    progressive = _jpeg(progressive=True)
    assert progressive.count(SCAN) == 10
    check_scans(progressive)
    check_scans(scan_bomb(200, MAX_SCANS - 6))


@pytest.mark.parametrize("noise", [SCAN * 500, b"\xff\xff\xda" * 500])
def test_what_looks_like_a_scan_elsewhere_is_not_counted(noise: bytes) -> None:
    comment = b"\xff\xfe" + (len(noise) + 2).to_bytes(2) + noise
    plain = _jpeg()
    for data in (plain[:2] + comment + plain[2:], plain + noise):
        check_scans(data)
        Image.open(io.BytesIO(data)).load()


def test_other_files_and_cut_ones_pass() -> None:
    check_scans(b"\x89PNG" + SCAN * 500)
    check_scans(b"")
    check_scans(b"\xff\xd8")
    check_scans(_jpeg()[:300] + b"\xff")


def test_fill_bytes_do_not_hide_a_scan() -> None:
    head, _, remainder = scan_bomb(200, 300).partition(SCAN)
    with pytest.raises(UnprocessableError):
        check_scans(head + SCAN + remainder.replace(SCAN, b"\xff\xff\xff\xda"))


def _segment(kind: int, content: bytes) -> bytes:
    return bytes((0xFF, kind)) + (len(content) + 2).to_bytes(2) + content


def test_metadata_are_left_out_and_pixels_are_not() -> None:
    """Segments of every kind, fill bytes, and bytes that belong to none."""
    plain = _jpeg(quality=90)
    metadata = b"".join(_segment(kind, b"\xff\xd9 of any kind") for kind in (*range(0xE1, 0xEE), 0xEF, 0xFE))
    spoiled = plain[:2] + metadata + b"\xff\xff\xff\0" + plain[2:20] + plain[20:]
    for data in (plain, spoiled):
        bare, exif = without_metadata(data)
        assert (bare, exif) == (plain, b"")


@pytest.mark.parametrize(
    "filler", [b"\xff\xd0", b"\xff\xfe\0\2", b"\xff\xe1\0\x08Exif\0\0", b"\xff\xf3", b"\xff\xe0\0\2"]
)
def test_as_many_segments_as_no_encoder_writes_are_refused(filler: bytes) -> None:
    plain = _jpeg()
    without_metadata(plain[:2] + filler * (MAX_SEGMENTS - 20) + plain[2:])
    with pytest.raises(UnprocessableError, match="more than 1000 segments"):
        without_metadata(plain[:2] + filler * (MAX_SEGMENTS + 1) + plain[2:])


def test_what_follows_a_cut_segment_is_kept() -> None:
    plain = _jpeg()
    for end in (3, 4, 5, 12, 40, 300):
        assert without_metadata(plain[:end])[0] in (plain[:end], plain[:2])
    assert without_metadata(plain[:12])[0] == plain[:12]


def test_the_index_of_several_images_is_kept_where_it_is_short() -> None:
    plain = _jpeg()
    short, long = (_segment(0xE2, b"MPF\0" + bytes(size)) for size in (100, 60_000))
    assert without_metadata(plain[:2] + short + long + plain[2:])[0] == plain[:2] + short + plain[2:]
