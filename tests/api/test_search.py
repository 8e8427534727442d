import threading
from typing import Any

import httpx
import pytest

from app.api.routes.search import SearchPage
from app.data.search import fuse
from app.data.search_index import SearchIndex
from app.data.text_encoder import EncoderError
from tests.service import is_ok, wait_for


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


@pytest.mark.parametrize("q", ["xylophone", '"left xylophone"', "é" * 300, "MPX9999", "left\0xylophone -left"])
def test_nothing_found_is_an_empty_list(api: httpx.Client, q: str) -> None:
    page = _search(api, q)
    assert (page.items, page.total) == ([], 0)


@pytest.mark.parametrize("query", ["", "?q=" + "x" * 301, "?q=a&limit=0", "?q=a&offset=-1", "?q=left&colour=red"])
def test_a_search_that_cannot_be_made_says_why(api: httpx.Client, query: str) -> None:
    answer = api.get(f"/search{query}")
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("q", "message"),
    [
        ("", "holds no word"),
        ("   ", "holds no word"),
        ('"', "holds no word"),
        ("*", "holds no word"),
        ("\0", "holds no word"),
        ("-left", "only excludes"),
        ("the -left", "only excludes"),
        ("the", "nearly every case holds the"),
        (" ".join(f"{letter}*" for letter in "abcdefghijk"), "11 prefixes such as aort*, at most 10"),
        ("kidney " + " ".join(f"-{letter}*" for letter in "abcdefghijk"), "11 prefixes"),
    ],
)
def test_a_query_without_a_word_to_look_for_is_refused(api: httpx.Client, q: str, message: str) -> None:
    answer = api.get("/search", params={"q": q})
    assert answer.status_code == 422
    assert message in answer.json()["errors"][0]["message"]


def _ids(page: Any) -> set[str]:
    return {hit.case.u_id for hit in page.items}


def test_all_words_are_required_and_any_word_is_a_labelled_fallback(api: httpx.Client) -> None:
    left, ureter = _search(api, "left", limit=100), _search(api, "ureter", limit=100)
    both = _search(api, "left ureter", limit=100)
    assert both.matched == "all"
    assert _ids(both) == _ids(left) & _ids(ureter)
    fallback = _search(api, "ureter xylophone", limit=100)
    assert fallback.matched == "any"
    assert _ids(fallback) == _ids(ureter)


def test_the_fallback_is_decided_among_the_selected_cases(api: httpx.Client) -> None:
    everywhere = _search(api, "ureter hilum", limit=100)
    chest = _search(api, "ureter hilum", limit=100, location_category="Thorax")
    assert chest.matched == "any"
    assert 0 < chest.total < everywhere.total
    assert all(hit.case.location_category == "Thorax" for hit in chest.items)


@pytest.mark.parametrize("u_id", ["MPX1001", "mpx1001", " MPX1001 "])
def test_a_case_is_found_by_its_id(api: httpx.Client, u_id: str) -> None:
    page = _search(api, u_id)
    assert page.exact_id == "MPX1001"
    [hit] = page.items
    assert hit.case.u_id == "MPX1001"
    assert [(match.field, match.ranges) for match in hit.matches] == [("u_id", [(0, 7)])]


def test_an_image_is_found_by_its_id(api: httpx.Client) -> None:
    image = api.get("/images", params={"limit": 1}).json()["items"][0]
    name = image["image"]
    for q in (name, name.upper(), name.partition("_")[2], f"{name}.png", f'"{name}"'):
        page = _search(api, q)
        assert (page.matched, page.did_you_mean) == ("all", None)
        assert page.exact_id == image["image"]
        [hit] = page.items
        assert hit.case.u_id == image["u_id"]
        assert [image_hit.image.image for image_hit in hit.images] == [image["image"]]


@pytest.mark.parametrize("q", ['"hydronephrosis left', '"hydronephrosis"left', 'left"hydronephrosis'])
def test_an_unclosed_quotation_mark_drops_no_word(api: httpx.Client, q: str) -> None:
    both = _ids(_search(api, "hydronephrosis left", limit=100))
    assert set(_ids(_search(api, q, limit=100))) <= set(both)
    assert _search(api, q.replace("left", "xylophone")).matched != "all"
    assert _search(api, q.replace("hydronephrosis", "xylophone")).matched != "all"


@pytest.mark.parametrize("q", ["uret", "uret*", "URET"])
def test_the_beginning_of_a_word_finds_it(api: httpx.Client, q: str) -> None:
    page = _search(api, q, limit=100)
    assert _ids(page) == _ids(_search(api, "ureter", limit=100))
    assert page.items[0].images[0].matches[0].ranges


@pytest.mark.parametrize(
    ("q", "meant"),
    [
        ("hydronefrosis left", "hydronephrosis left"),
        ('"hydronefrosis of"', '"hydronephrosis of"'),
        ('" hydronefrosis of"', '" hydronephrosis of"'),
        ('"ureter left"', "ureter left"),
        ("hydronephrosis", None),
        ("xylophone", None),
        ("MPX9999", None),
    ],
)
def test_a_misspelt_query_is_corrected(api: httpx.Client, q: str, meant: str | None) -> None:
    assert _search(api, q).did_you_mean == meant


@pytest.mark.parametrize(
    "q", ["Broca's", "broca’s", "BROCA", "brocas", "Brocá", "Broca\N{COMBINING ACUTE ACCENT}", "“broca’s area”"]
)
def test_spellings_of_a_word_are_one(api: httpx.Client, q: str) -> None:
    [hit] = _search(api, q).items
    match = hit.matches[0]
    assert match.field == "title"
    assert match.snippet[slice(*match.ranges[0])] == "Broca's"


@pytest.mark.parametrize("q", ["L4-L5", "l4‑l5", '"L4 L5"', "l4l5"])
def test_hyphens_make_no_difference(api: httpx.Client, q: str) -> None:
    page = _search(api, q, limit=100)
    assert page.total == _search(api, "herniation", limit=100).total > 0
    assert page.items[0].matches[0].field == "findings"
    assert "L4" in page.items[0].matches[0].snippet


def test_common_words_are_left_out_and_not_marked(api: httpx.Client) -> None:
    page = _search(api, "the ureter in a kidney")
    assert page.ignored == ["the", "in", "a"]
    assert page.matched == "all"
    matches = [match for hit in page.items for match in (*hit.matches, *(m for i in hit.images for m in i.matches))]
    marked = {match.snippet[start:end].casefold() for match in matches for start, end in match.ranges}
    assert marked == {"ureter", "kidney"}


def test_what_a_case_is_about_comes_before_what_it_mentions(api: httpx.Client) -> None:
    fields = [{match.field for match in hit.matches} for hit in _search(api, "musculoskeletal lesion", limit=100).items]
    about = ["title" in names for names in fields]
    assert any(about)
    assert about == sorted(about, reverse=True)


@pytest.fixture(scope="module")
def meaning(api: httpx.Client) -> httpx.Client:
    """The service with its embeddings computed."""
    assert wait_for(api, "/search?q=stone&mode=meaning", is_ok).status_code == 200
    return api


def test_other_words_for_it_are_found_by_meaning(meaning: httpx.Client) -> None:
    assert _search(meaning, "renal calculus").total == 0
    page = _search(meaning, "renal calculus", mode="meaning")
    assert (page.mode, page.matched) == ("meaning", None)
    assert {hit.case.location for hit in page.items[:5]} == {"Genitourinary"}
    scores = [hit.score for hit in page.items]
    assert scores == sorted(scores, reverse=True)
    assert any(hit.images for hit in page.items)


def test_hybrid_has_what_both_find(meaning: httpx.Client) -> None:
    words = _search(meaning, "ureter", limit=100)
    near = _search(meaning, "ureter", limit=100, mode="meaning")
    both = _search(meaning, "ureter", limit=100, mode="hybrid")
    assert (both.mode, both.matched) == ("hybrid", "all")
    assert _ids(both) == _ids(words) | _ids(near)
    assert both.total == len(_ids(both))
    fallback = _search(meaning, "renal calculus", mode="hybrid")
    assert (fallback.mode, fallback.matched) == ("hybrid", None)
    assert fallback.total > 0


def test_filters_phrases_and_exclusions_hold_for_meaning(meaning: httpx.Client) -> None:
    every = _search(meaning, "kidney disease", limit=100, mode="meaning")
    test = _search(meaning, "kidney disease", limit=100, mode="meaning", split="test")
    assert [h.case.u_id for h in test.items] == [h.case.u_id for h in every.items if h.case.split == "test"]
    ureter = _ids(_search(meaning, "ureter", limit=100))
    assert _ids(_search(meaning, 'kidney "left ureter"', limit=100, mode="meaning")) <= ureter
    without = _ids(_search(meaning, "kidney -ureter", limit=100, mode="hybrid"))
    assert not without & ureter


def test_an_id_is_looked_up_in_every_mode(meaning: httpx.Client) -> None:
    for mode in ("words", "meaning", "hybrid"):
        page = _search(meaning, "MPX1001", mode=mode)
        assert (page.exact_id, page.mode, page.total) == ("MPX1001", "words", 1)


def test_without_the_encoder_a_search_by_meaning_is_unavailable(
    api: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: SearchIndex) -> None:
        raise EncoderError("The sentence encoder is not installed: pip install it")

    monkeypatch.setattr(SearchIndex, "meaning_index", fail)
    answer = api.get("/search?q=stone&mode=meaning")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "60"
    assert "pip install it" in answer.json()["detail"]
    assert _search(api, "stone", mode="hybrid").mode == "words"


def test_a_search_that_takes_too_long_is_given_up(api: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    _search(api, "stone")
    released = threading.Event()
    monkeypatch.setattr("app.data.search_index._MAX_RUN_S", 0.2)
    monkeypatch.setattr("app.data.search._plan", lambda *_: released.wait(30))
    answer = api.get("/search?q=stone")
    released.set()
    assert answer.status_code == 504
    assert answer.json()["detail"].startswith("The search took too long.")


def test_an_unknown_mode_is_refused(api: httpx.Client) -> None:
    assert api.get("/search", params={"q": "left", "mode": "magic"}).status_code == 422


def test_fusion_adds_reciprocal_ranks() -> None:
    fused = fuse([("a", 9.0), ("b", 1.0)], [("b", 0.5), ("c", 0.4)])
    assert fused == [("b", 1 / 12 + 1 / 11), ("a", 1 / 11), ("c", 1 / 12)]


@pytest.mark.medpix
def test_known_words_of_the_real_data(medpix_api: httpx.Client) -> None:
    page = _search(medpix_api, '"pilocytic astrocytoma"')
    assert page.total >= 2
    assert "pilocytic astrocytoma" in (page.items[0].case.title or "").casefold()
    assert page.items[0].matches[0].field == "title"
    assert {_search(medpix_api, f"Crohn{end}").total for end in ("", "s", "'s", "’s", "`s", "´s", "＇S")} == {22}
    assert _search(medpix_api, "MPX217").total == _search(medpix_api, "mpx217*").total >= 2
    for field in ("topic.disease_discussion__contains", "discussion__contains"):
        texts = [medpix_api.get("/cases", params={field: f"Crohn{end}"}).json()["total"] for end in ("’s", "'s", "´s")]
        assert len(set(texts)) == 1
        assert texts[0] > 0
    # Four figures are labelled A, eight a.
    parts = [medpix_api.get("/images", params={"figure_part": part}).json()["total"] for part in ("a", "A")]
    assert parts == [12, 12]
    smoker = _search(medpix_api, "lung cancer smoker CT")
    assert (smoker.matched, smoker.total) == ("all", 7)
    assert _search(medpix_api, "menigioma").did_you_mean == "meningioma"
    assert _search(medpix_api, "aortic disection").did_you_mean == "aortic dissection"
    assert _search(medpix_api, "oedema").total == _search(medpix_api, "edema").total > 20
    assert _search(medpix_api, "metastasis").total == _search(medpix_api, "metastases").total > 20
    assert "aort" in (_search(medpix_api, "aort").items[0].case.title or "").casefold()
    malrotation = _search(medpix_api, "malrotation appendicitis")
    assert {"MPX1139", "MPX2540"} <= {hit.case.u_id for hit in malrotation.items[:10]}
