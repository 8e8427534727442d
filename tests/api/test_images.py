import errno
import hashlib
import io
import os
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
    found = ImageWithCase.model_validate_json(api.get(f"/images/{image.upper()}").content)
    assert found.image == image
    assert found.case.u_id == found.u_id == "MPX1008"


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
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        answer = api.get(f"/images/{image}/{suffix}", headers={"If-None-Match": known})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert api.get(f"/images/{image}/{suffix}", headers={"If-None-Match": '"other"'}).status_code == 200


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


@pytest.mark.parametrize("width", [64, 200, 512])
def test_a_thumbnail_fits_its_square(api: httpx.Client, image: str, width: int) -> None:
    answer = api.get(f"/images/{image}/thumbnail", params={"width": width})
    assert answer.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert max(picture.size) <= width
        assert picture.format == "JPEG"
    assert api.get(f"/images/{image}/thumbnail", params={"width": width}).content == answer.content


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
