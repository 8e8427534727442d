import gzip

import httpx
import pytest

from app.api.negotiation import accepts


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("gzip", 1.0),
        ("deflate, GZIP ;q=0.5", 0.5),
        ("gzip;q=0", 0.0),
        ("gzip;q=0.000, br", 0.0),
        ("x-gzip", 0.0),
        ("gzip;q=much", 0.0),
        ("identity", 0.0),
        ("*", 0.0),
        ("", 0.0),
    ],
)
def test_what_a_client_wants(header: str, expected: float) -> None:
    assert accepts(header, "gzip") == expected


def test_json_is_compressed_for_who_wants_it_alone(api: httpx.Client) -> None:
    def coding(wanted: str) -> tuple[str | None, str, bytes]:
        with api.stream("GET", "/fields", headers={"Accept-Encoding": wanted}) as answer:
            return answer.headers.get("content-encoding"), answer.headers["etag"], b"".join(answer.iter_raw())

    plain = coding("gzip;q=0")
    assert plain == coding("identity")
    assert plain[0] is None
    packed = coding("br;q=1, gzip;q=0.5")
    assert packed[:2] == ("gzip", f"W/{plain[1]}")
    assert gzip.decompress(packed[2]) == plain[2]
    for tag in (plain[1], packed[1]):
        assert api.get("/fields", headers={"If-None-Match": tag}).status_code == 304
