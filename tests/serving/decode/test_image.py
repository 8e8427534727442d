import hashlib
import tracemalloc

import numpy as np
import pytest

from app.core.exceptions import ApiError
from app.core.settings import load_settings
from app.serving.decode.image import decode
from tests.serving.hostile_files import GOOD_SIZE, accepted, png_bomb, refused

ACCEPTED, REFUSED = accepted(), refused()


@pytest.mark.parametrize("name", ACCEPTED)
def test_every_mode_is_decoded(name: str) -> None:
    decoded = decode(ACCEPTED[name], load_settings())
    assert decoded.info.sha256 == hashlib.sha256(ACCEPTED[name]).hexdigest()
    assert decoded.image.size == (decoded.info.width, decoded.info.height)
    if name not in ("smallest", "narrow"):
        assert decoded.image.size == GOOD_SIZE


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_judged_is_refused_with_a_reason(name: str) -> None:
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


def test_a_jpeg_of_two_pictures_is_read_by_its_first() -> None:
    decoded = decode(ACCEPTED["jpeg with two pictures"], load_settings())
    single = decode(ACCEPTED["jpeg colour"], load_settings())
    assert np.array_equal(np.asarray(decoded.image), np.asarray(single.image))
    assert "2 pictures; the first one" in decoded.info.notes[0]
    assert single.info.notes == ()


def test_a_hash_that_is_known_is_not_made_again() -> None:
    assert decode(ACCEPTED["grey"], load_settings(), "known").info.sha256 == "known"


def test_limits_are_settings() -> None:
    settings = load_settings(max_pixels=5000, min_side=100)
    with pytest.raises(ApiError, match="megapixels"):
        decode(ACCEPTED["grey"], settings)
    with pytest.raises(ApiError, match="at least 100"):
        decode(ACCEPTED["smallest"], settings)
