import io

import pytest
from PIL import Image

from app.core.exceptions import UnprocessableError
from app.serving.decode.jpeg import MAX_SCANS, check_scans
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
