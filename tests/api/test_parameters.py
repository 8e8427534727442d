"""Query parameters: each route honours those that make sense, and refuses all others."""

import base64

import httpx
import pytest


@pytest.mark.parametrize(
    "address",
    [
        *("/images?offset=3", "/images?raw=true", "/images?of=cases", "/images?format=csv", "/cases?expand=case"),
        *("/facets?limit=3", "/facets?cursor=x", "/facets?sort=age", "/export?limit=3", "/export?cursor=x"),
        *("/export?fields=u_id", "/cases/MPX1007?q=x", "/cases/MPX1007?fields=title", "/fields?q=x", "/models?limit=1"),
        *("/health/live?x=1", "/search?q=a&cursor=x", "/images?limit=2&limit=3", "/images?q=a&q=b", "/facets?q=a&q=b"),
        *("/images?limit=1_0", "/images?limit=%D9%A3", "/images?limit=%205", "/images?limit=%2B5", "/images?limit=5.0"),
        *("/search?q=a&offset=1_0", "/images?sample=1_0", "/images?sample=2&seed=1_0"),
        *("/images?seed=1", "/images?sample_by=case", "/images?sample=0", "/images?sample=2&seed=-1"),
    ],
)
def test_what_a_route_does_not_take_is_refused(api: httpx.Client, address: str) -> None:
    answer = api.get(address)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"]


@pytest.mark.parametrize("path", ["/health/live", "/images"])
def test_too_many_parameters_are_refused_with_one_sentence(api: httpx.Client, path: str) -> None:
    answer = api.get(f"{path}?{'&'.join(f'p{number}=' for number in range(1_000))}")
    assert answer.status_code == 422
    assert answer.json()["errors"] == [{"parameter": "", "message": "1000 parameters; at most 50 are read"}]


@pytest.mark.parametrize(
    ("address", "parameter", "text"),
    [
        ("/images?diagnosis=caf%E9", "diagnosis", "caf%E9"),
        ("/search?q=%FF", "q", "%FF"),
        ("/images?limit=2&caf%E9=1", "caf\ufffd", "1"),
        ("/models?x=%C3%28", "x", "%C3%28"),
    ],
)
def test_text_that_is_not_utf_8_is_refused(api: httpx.Client, address: str, parameter: str, text: str) -> None:
    answer = api.get(address)
    assert answer.status_code == 422
    message = f"{text} is not UTF-8; é is %C3%A9 in UTF-8"
    assert answer.json()["errors"] == [{"parameter": parameter, "message": message}]
    assert api.get("/search?q=caf%C3%A9").status_code == 200


def test_the_bounds_of_numbers_are_declared(api: httpx.Client) -> None:
    paths = api.get("/openapi.json").json()["paths"]
    declared = [each for path in paths.values() for route in path.values() for each in route.get("parameters", [])]
    numbers = [each["schema"] for each in declared if each["name"] in ("limit", "offset", "sample", "seed")]
    assert len(numbers) > 10
    for schema in numbers:
        assert {"minimum", "maximum"} <= set(schema.get("anyOf", [schema])[0])


def test_text_search_narrows_lists_facets_and_exports_alike(api: httpx.Client) -> None:
    ids = {hit["case"]["u_id"] for hit in api.get("/search?q=brain&limit=100").json()["items"]}
    cases = {case["u_id"] for case in api.get("/cases?q=brain&limit=100").json()["items"]}
    assert ids
    assert cases == ids
    exported = api.get("/export?q=brain&of=cases&format=json&raw=false").json()
    assert {row["u_id"] for row in exported} == ids
    images = api.get("/images?q=brain").json()["total"]
    assert images == api.get("/facets?q=brain").json()["total"] == len(api.get("/export?q=brain").json())
    assert 0 < images <= api.get("/images").json()["total"]


def test_a_sample_is_the_same_for_the_same_seed(api: httpx.Client) -> None:
    def drawn(**parameters: str) -> list[str]:
        items = api.get("/images", params={"limit": "100", **parameters}).json()["items"]
        return [item["image"] for item in items]

    first = drawn(sample="10", seed="1")
    assert len(set(first)) == 10
    assert drawn(sample="10", seed="1") == first
    assert drawn(sample="10", seed="2") != first
    assert set(drawn(sample="5", seed="1")) < set(first)
    by_case = drawn(sample="10", seed="1", sample_by="case")
    assert len({image.partition("_")[0] for image in by_case}) == 10
    within = drawn(sample="3", modality="CT")
    assert set(within) <= set(drawn(modality="CT"))


@pytest.mark.parametrize("text", ["[" * 2990, '{"k":["\\ud800"],"h":"x"}', '{"k":[true],"h":"x"}', "[]", "3"])
def test_no_text_as_a_cursor_is_a_fault(api: httpx.Client, text: str) -> None:

    cursor = base64.urlsafe_b64encode(text.encode()).decode()
    answer = api.get("/images", params={"cursor": cursor})
    assert answer.status_code == 422, answer.text


def test_links_lead_back_through_a_proxy_that_strips_its_prefix(api: httpx.Client) -> None:
    behind = {"X-Forwarded-Prefix": "/medpix"}
    page = api.get("/images?limit=1", headers=behind)
    assert page.links["next"]["url"].startswith("/medpix/images?")
    assert page.json()["items"][0]["links"]["self"].startswith("/medpix/images/")
    assert api.get("/images?limit=1").json()["items"][0]["links"]["self"].startswith("/images/")
    for other in ("//evil.example", "/..", "/a/../b", "/."):
        assert api.get("/images?limit=1", headers={"X-Forwarded-Prefix": other}).links["next"]["url"][:8] == "/images?"
    for address in ("/images?limit=1", "/cases/MPX1008"):
        tags = [api.get(address, headers=headers).headers["etag"] for headers in (behind, {})]
        assert tags[0] != tags[1], "the links are others"
        for tag, headers, status in zip(tags * 2, (behind, {}, {}, behind), (304, 304, 200, 200), strict=True):
            assert api.get(address, headers={"If-None-Match": tag, **headers}).status_code == status
    assert api.get("/medpix", headers=behind).status_code == 200


@pytest.mark.parametrize(("host", "status"), [("evil.example.org", 421), ("127.0.0.1:8000", 200), ("localhost", 200)])
def test_only_trusted_host_names_are_answered(api: httpx.Client, host: str, status: int) -> None:
    assert api.get("/cases", headers={"Host": host}).status_code == status
