import errno
import hashlib
import io
import os
import re
from pathlib import Path

import httpx
import pytest
from PIL import Image

from app.api.schemas.records import ImagePage, ImageView, ImageWithCase
from app.data.image_store import ImageStore


@pytest.fixture(scope="module")
def image(api: httpx.Client) -> str:
    return str(api.get("/cases/MPX1008").json()["images"][0]["image"])


def test_an_image_comes_with_its_case(api: httpx.Client, image: str) -> None:
    body = ImageWithCase.model_validate_json(api.get(f"/images/{image.upper()}").content)
    assert body.image == image
    assert body.case.u_id == body.u_id == "MPX1008"


def test_the_file_is_the_one_of_the_dataset(api: httpx.Client, image: str, generated_dataset: Path) -> None:
    answer = api.get(f"/images/{image}/file")
    data = (generated_dataset / "images" / f"{image}.png").read_bytes()
    assert answer.content == data
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["etag"] == f'"{hashlib.sha256(data).hexdigest()}"'
    assert "immutable" in answer.headers["cache-control"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "last-modified" not in answer.headers


@pytest.mark.parametrize("suffix", ["file", "thumbnail", "thumbnail?width=64"])
def test_a_client_that_has_the_file_is_not_sent_it_again(api: httpx.Client, image: str, suffix: str) -> None:
    etag = api.get(f"/images/{image}/{suffix}").headers["etag"]
    for if_none_match in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        answer = api.get(f"/images/{image}/{suffix}", headers={"If-None-Match": if_none_match})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert api.get(f"/images/{image}/{suffix}", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize("suffix", ["file", "thumbnail"])
def test_another_content_than_if_match_names_is_not_sent(api: httpx.Client, image: str, suffix: str) -> None:
    path = f"/images/{image}/{suffix}"
    etag = api.get(path).headers["etag"]
    for if_match, status in ((etag, 200), ("*", 200), (f'"other", {etag}', 200), ('"other"', 412), (f"W/{etag}", 412)):
        assert api.get(path, headers={"If-Match": if_match}).status_code == status
    refused = api.get(path, headers={"If-Match": '"other"', "If-None-Match": etag})
    assert (refused.status_code, refused.json()["type"]) == (412, "urn:medpix:problem:precondition-failed")


def test_parts_of_a_file(api: httpx.Client, image: str) -> None:
    address = f"/images/{image}/file"
    whole = api.get(address).content
    part = api.get(address, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole)}"
    assert api.get(address, headers={"Range": "bytes=-5"}).content == whole[-5:]
    assert api.get(address, headers={"Range": "lines=1-2"}).content == whole
    beyond = api.get(address, headers={"Range": f"bytes={len(whole)}-"})
    assert beyond.status_code == 416
    assert beyond.headers["content-range"] == f"bytes */{len(whole)}"
    assert beyond.headers["content-type"] == "application/problem+json"
    head = api.head(address)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(whole)))


RANGED = ("/images/{}/file", "/static/app.css")


@pytest.mark.parametrize("suffix", ["file", "thumbnail"])
def test_a_range_is_answered_if_the_client_has_the_same_content(api: httpx.Client, image: str, suffix: str) -> None:
    address = f"/images/{image}/{suffix}"
    whole = api.get(address)
    etag = whole.headers["etag"]
    for condition, status in (
        (etag, 206),
        (f"W/{etag}", 200),
        ('"other"', 200),
        ("Fri, 27 Nov 2026 10:00:00 GMT", 200),
        ("", 200),
    ):
        answer = api.get(address, headers={"Range": "bytes=0-9", "If-Range": condition})
        assert (answer.status_code, answer.content) == (status, whole.content[: 10 if status == 206 else None])
        assert answer.headers["etag"] == etag
    assert api.get(address, headers={"If-Range": etag}).status_code == 200
    beyond = api.get(address, headers={"Range": "bytes=999999999-", "If-Range": '"other"'})
    assert (beyond.status_code, beyond.content) == (200, whole.content)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("Bytes = 5-5", slice(5, 6)),
        ("bytes=0-0,999999999-", slice(0, 1)),
        ("bytes=999999999-,-1", slice(-1, None)),
        ("bytes=3-" + "9" * 5000, slice(3, None)),
        ("bytes=" + "0" * 5000 + "3-4", slice(3, 5)),
        ("bytes=-" + "9" * 5000, slice(None)),
        ("bytes=,0-3,", slice(0, 4)),
    ],
)
@pytest.mark.parametrize("address", RANGED)
def test_ranges_that_can_be_answered(api: httpx.Client, image: str, address: str, header: str, expected: slice) -> None:
    address = address.format(image)
    whole = api.get(address).content
    answer = api.get(address, headers={"Range": header})
    assert (answer.status_code, answer.content) == (206, whole[expected])
    first = range(len(whole))[expected][0]
    assert answer.headers["content-range"] == f"bytes {first}-{first + len(answer.content) - 1}/{len(whole)}"


@pytest.mark.parametrize("header", ["bytes=-0", "bytes=999999999-", "bytes=" + "9" * 5000 + "-", "bytes=-0,999999999-"])
@pytest.mark.parametrize("address", RANGED)
def test_ranges_outside_the_file(api: httpx.Client, image: str, address: str, header: str) -> None:
    answer = api.get(address.format(image), headers={"Range": header})
    assert answer.status_code == 416
    assert answer.headers["content-type"] == "application/problem+json"
    assert re.fullmatch(r"bytes \*/\d+", answer.headers["content-range"])


@pytest.mark.parametrize(
    "header",
    [
        "bytes=5-2",
        "bytes=0-1,5-2",
        "bytes=-",
        "bytes=",
        "bytes",
        "bytes=a-b",
        "bytes=0-1;2-3",
        "bytes=+1-2",
        "bytes=١-٢",
        "lines=0-1",
        "bytes=" + "0-0," * 101 + "0-0",
    ],
)
@pytest.mark.parametrize("address", RANGED)
def test_malformed_ranges_are_ignored(api: httpx.Client, image: str, address: str, header: str) -> None:
    address = address.format(image)
    whole = api.get(address)
    answer = api.get(address, headers={b"Range": header.encode()})
    assert (answer.status_code, answer.content) == (200, whole.content)
    headers = {b"Range": header.encode(), b"If-None-Match": whole.headers["etag"].encode()}
    assert api.get(address, headers=headers).status_code == 304


def test_a_head_has_no_ranges(api: httpx.Client, image: str) -> None:
    answer = api.head(f"/images/{image}/file", headers={"Range": "bytes=0-9"})
    assert (answer.status_code, answer.headers["content-length"]) == (
        200,
        str(len(api.get(f"/images/{image}/file").content)),
    )


def test_several_ranges(api: httpx.Client, image: str) -> None:
    whole = api.get(f"/images/{image}/file").content
    answer = api.get(f"/images/{image}/file", headers={"Range": "bytes=0-3,10-13,99999999-"})
    assert answer.status_code == 206
    assert answer.headers["content-type"].startswith("multipart/byteranges; boundary=")
    assert answer.content.count(b"Content-Range: bytes ") == 2
    assert whole[10:14] in answer.content


@pytest.mark.parametrize(("width", "step"), [(64, 64), (200, 128), (256, 256), (512, 512)])
def test_a_thumbnail_fits_its_square(api: httpx.Client, image: str, width: int, step: int) -> None:
    answer = api.get(f"/images/{image}/thumbnail", params={"width": width})
    assert answer.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert max(picture.size) <= step
        assert picture.format == "JPEG"
    exact = api.get(f"/images/{image}/thumbnail", params={"width": step})
    assert (exact.content, exact.headers["etag"]) == (answer.content, answer.headers["etag"])


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/images/MPX1008_synpic99999", 404),
        ("/images/MPX1008_synpic99999/file", 404),
        ("/images/MPX1008", 422),
        ("/images/..%2f..%2fetc%2fpasswd/file", 404),
        ("/images/%2fetc%2fpasswd", 404),
        ("/images/MPX1008_synpic20056.png/file", 422),
        ("/images/MPX1008_synpic1%00/file", 422),
        ("/images?age=old", 422),
        ("/images?age__gte=", 422),
        ("/images?caption__regex=(", 422),
    ],
)
def test_what_is_not_there_or_cannot_be_asked(api: httpx.Client, path: str, status: int) -> None:
    answer = api.get(path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("width", ["63", "513", "wide"])
def test_thumbnail_widths_have_bounds(api: httpx.Client, image: str, width: str) -> None:
    assert api.get(f"/images/{image}/thumbnail", params={"width": width}).status_code == 422


def test_a_file_that_is_gone_is_a_404_that_says_so(api: httpx.Client, generated_dataset: Path) -> None:
    image = api.get("/images?split=test&limit=1").json()["items"][0]["image"]
    path = generated_dataset / "images" / f"{image}.png"
    data = path.read_bytes()
    path.unlink()
    try:
        answer = api.get(f"/images/{image}/file")
        assert answer.status_code == 404
        assert image in answer.json()["detail"]
    finally:
        path.write_bytes(data)


def test_filters_and_pages(api: httpx.Client) -> None:
    page = ImagePage.model_validate_json(api.get("/images?modality=MR&split=train&limit=3&sort=-age").content)
    assert len(page.items) == 3
    items = [ImageView.model_validate(item.model_dump()) for item in page.items]
    assert all(item.modality == "MR" and item.split == "train" for item in items)
    ages = [item.age or 0 for item in items]
    assert ages == sorted(ages, reverse=True)


@pytest.mark.medpix
@pytest.mark.parametrize(
    ("query", "total"),
    [
        ("", 2050),
        ("type=CT", 1062),
        ("modality=MR", 988),
        ("sex=male", 1098),
        ("sex=N/A", 67),
        ("sex__isnull=true", 67),
        ("age=1", 87),
        ("age=0", 69),
        ("acr_codes=1.3", 310),
        ("location_category=Head", 884),
        ("location=Brain and Neuro", 631),
        ("location=Left Blank", 1),
        ("plane__isnull=true", 1),
        ("source_url__isnull=true", 261),
        ("u_id=MPX2175", 31),
        ("split=test&modality=CT", 100),
        ("subsplit=train_1", 810),
    ],
)
def test_the_numbers_of_the_real_data(medpix_api: httpx.Client, query: str, total: int) -> None:
    assert medpix_api.get(f"/images?{query}").json()["total"] == total


@pytest.mark.medpix
def test_a_case_is_found_by_a_location_that_was_left_blank(medpix_api: httpx.Client) -> None:
    [case] = medpix_api.get("/cases?location=Left Blank").json()["items"]
    assert (case["u_id"], case["location"]) == ("MPX1325", None)
    assert medpix_api.get("/cases?location__ne=Left Blank").json()["total"] == 670


@pytest.mark.medpix
def test_every_real_image_is_seen_once_in_every_order(medpix_api: httpx.Client) -> None:
    for sort in ("location_category", "-age,plane", ""):
        seen: list[str] = []
        cursor = None
        while True:
            query = {"limit": "100", "sort": sort} | ({"cursor": cursor} if cursor else {})
            page = medpix_api.get("/images", params=query).json()
            seen += [item["image"] for item in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert len(seen) == len(set(seen)) == 2050


@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, 503), (errno.EMFILE, 503), (errno.EIO, 500)])
def test_a_machine_that_is_short_of_something_is_told_apart_from_a_fault(
    api: httpx.Client, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number), "thumbnails")

    monkeypatch.setattr(ImageStore, "_write_thumbnail", staticmethod(fail))
    image = api.get("/images", params={"limit": 1}).json()["items"][0]["image"]
    answer = api.get(f"/images/{image}/thumbnail", params={"width": 333})
    assert answer.status_code == status
    assert (os.strerror(number) in answer.json()["detail"]) == (status == 503)
    assert ("retry-after" in answer.headers) == (status == 503)
