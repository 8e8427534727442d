from typing import Any

import httpx
import pytest

from app.api.routes.search import SearchPage


def _search(client: httpx.Client, q: str, **parameters: str | int) -> Any:
    answer = client.get("/search", params={"q": q, **parameters})
    assert answer.status_code == 200, answer.text
    return SearchPage.model_validate_json(answer.content)


def test_cases_are_found_by_their_captions(api: httpx.Client) -> None:
    page = _search(api, "ureter")
    assert page.total > 0
    assert any(hit.images for hit in page.items)
    for hit in page.items:
        assert hit.images or hit.matches
        for image in hit.images:
            [match] = image.matches
            assert match.field == "caption"
            assert [match.snippet[start:end].casefold() for start, end in match.ranges] == ["ureter"]
    scores = [hit.score for hit in page.items]
    assert scores == sorted(scores, reverse=True)


def test_other_forms_of_a_word_are_found_and_marked(api: httpx.Client) -> None:
    [match] = _search(api, "kidneys").items[0].images[0].matches
    assert [match.snippet[start:end] for start, end in match.ranges] == ["kidney"]


def test_phrases_and_exclusions(api: httpx.Client) -> None:
    both = _search(api, "left", limit=100)
    phrase = _search(api, '"left ureter"', limit=100)
    without = _search(api, "left -ureter", limit=100)
    assert 0 < phrase.total < both.total
    ids = [{hit.case.u_id for hit in page.items} for page in (both, phrase, without)]
    assert ids[1] | ids[2] == ids[0]
    assert not ids[1] & ids[2]


def test_filters_apply(api: httpx.Client) -> None:
    every = _search(api, "left", limit=100)
    some = _search(api, "left", limit=100, split="test")
    assert [hit.case.u_id for hit in some.items] == [h.case.u_id for h in every.items if h.case.split == "test"]
    assert 0 < some.total < every.total


def test_pages_follow_each_other(api: httpx.Client) -> None:
    every = [hit.case.u_id for hit in _search(api, "left", limit=100).items]
    parts = [
        hit.case.u_id for start in range(0, len(every), 3) for hit in _search(api, "left", limit=3, offset=start).items
    ]
    assert parts == every


@pytest.mark.parametrize(
    "q", ["", "   ", "xylophone", '"left xylophone"', "-left", '"', "$where", "the", "*", "\0", "é" * 300]
)
def test_nothing_found_is_an_empty_list(api: httpx.Client, q: str) -> None:
    assert _search(api, q).items == []


@pytest.mark.parametrize("query", ["", "?q=" + "x" * 301, "?q=a&limit=0", "?q=a&offset=-1", "?q=a&colour=red"])
def test_a_search_that_cannot_be_made_says_why(api: httpx.Client, query: str) -> None:
    answer = api.get(f"/search{query}")
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.medpix
def test_known_words_of_the_real_data(medpix_api: httpx.Client) -> None:
    page = _search(medpix_api, '"pilocytic astrocytoma"')
    assert page.total >= 2
    assert "pilocytic astrocytoma" in (page.items[0].case.title or "").casefold()
    assert page.items[0].matches[0].field == "title"
    malrotation = _search(medpix_api, "malrotation appendicitis")
    assert {"MPX1139", "MPX2540"} <= {hit.case.u_id for hit in malrotation.items[:10]}
