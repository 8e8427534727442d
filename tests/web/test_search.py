"""Search on the browse page, in a real Chromium."""

import re

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(("typed", "kind"), [("MPX1003", "case"), ("mpx1003", "case"), ("", "image")])
def test_an_id_that_is_typed_opens_its_case(page: Page, predict_api: httpx.Client, typed: str, kind: str) -> None:
    images = predict_api.get("/cases/MPX1003").json()["images"]
    page.goto("/?modality=CT")
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    page.get_by_role("searchbox").fill(typed or images[-1]["image"])
    page.keyboard.press("Enter")
    image_id = images[0]["image"] if kind == "case" else images[-1]["image"]
    expect(page).to_have_url(re.compile(rf"/pages/case/MPX1003#{image_id}$"))
    expect(page.locator("#case")).to_have_attribute("aria-busy", "false")


def test_an_id_without_a_case_is_said(page: Page) -> None:
    page.goto("/")
    expect(page.locator(".tile").first).to_be_visible()
    page.get_by_role("searchbox").fill("MPX9999")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("There is no case MPX9999")
    expect(page.locator(".tile").first).to_be_visible()


def test_a_search_that_found_less_than_was_asked_says_so(page: Page) -> None:
    """The answer of a search that corrects the spelling and falls back to any of the words."""

    def answer(route: Route) -> None:
        response = route.fetch(url=route.request.url.replace("uretr", "ureter"))
        body = response.json() | {"matched": "any", "did_you_mean": "ureter stone"}
        route.fulfill(json=body, status=200)

    page.route(re.compile(r"/search\?"), answer)
    page.goto("/?q=uretr+stone")
    notes = page.locator("#search-notes")
    expect(notes).to_contain_text("No case has all the words of “uretr stone”. These have some of them.")
    page.unroute_all()
    notes.get_by_role("link", name="ureter stone").click()
    expect(page).to_have_url(re.compile(r"\?q=ureter\+stone$"))
    expect(page.locator("#status")).to_contain_text("for “ureter stone”")


def test_an_id_in_a_shared_search_leads_to_its_case(page: Page) -> None:
    """The answer of a search that knows ids."""

    def answer(route: Route) -> None:
        route.fulfill(json=route.fetch().json() | {"exact_id": "MPX1003", "matched": "all"}, status=200)

    page.route(re.compile(r"/search\?"), answer)
    page.goto("/?q=MPX1003")
    page.locator("#search-notes").get_by_role("link", name="MPX1003").click()
    expect(page).to_have_url(re.compile("/pages/case/MPX1003"))


@pytest.mark.parametrize("view", ["cases", "images"])
def test_a_search_by_meaning_is_a_choice(page: Page, view: str) -> None:
    """The answer of a search that also compares meanings."""
    modes: list[str] = []

    def answer(route: Route) -> None:
        mode = re.search("mode=([a-z]+)", route.request.url)
        modes.append(mode[1] if mode else "words")
        body = route.fetch(url=re.sub("&?mode=[a-z]+", "", route.request.url)).json()
        route.fulfill(json=body | {"mode": modes[-1]}, status=200)

    page.route(re.compile(r"/search\?"), answer)
    page.goto(f"/?view={view}")
    expect(page.locator("#mode")).to_be_visible()
    page.get_by_role("searchbox").fill("stone")
    page.locator("#mode").select_option("meaning")
    expect(page).to_have_url(re.compile(r"q=stone&mode=meaning"))
    expect(page.locator(".tile").first).to_be_visible()
    assert "meaning" in modes
    page.unroute_all(behavior="ignoreErrors")


def test_a_search_without_the_embeddings_says_so_and_is_repeated(page: Page) -> None:
    """The answer of a hybrid search: first before the sentence embeddings are there, then after."""
    modes = ["words", "hybrid"]
    page.route(re.compile(r"/search\?"), lambda route: route.fulfill(json=route.fetch().json() | {"mode": modes[0]}))
    page.goto("/?q=stone&mode=hybrid")
    notes = page.locator("#search-notes")
    expect(notes).to_contain_text("Found by words only: the sentence embeddings")
    modes.pop(0)
    notes.get_by_role("link", name="Search again").click()
    expect(notes).to_be_empty()
    expect(page.locator(".tile").first).to_be_visible()
    page.unroute_all(behavior="ignoreErrors")


def test_fields_with_the_same_words_are_one_passage(page: Page) -> None:
    def answer(route: Route) -> None:
        body = route.fetch().json()
        match = {"snippet": "Stone in the ureter", "ranges": [[0, 5]]}
        body["items"][0]["matches"] = [{"field": name, **match} for name in ("diagnosis", "topic.title", "findings")]
        body["items"][0]["images"] = []
        route.fulfill(json=body, status=200)

    page.route(re.compile(r"/search\?"), answer)
    page.goto("/?q=ureter")
    snippets = page.locator(".hit").first.locator(".snippet")
    expect(snippets).to_have_text(["Diagnosis, topic title, findings: Stone in the ureter"])


def test_a_search_marks_the_words_and_ranks_the_cases(page: Page, predict_api: httpx.Client) -> None:
    page.goto("/")
    page.keyboard.press("/")
    page.keyboard.type("ureter stone")
    page.keyboard.press("Enter")
    expect(page.locator(".hit").first.locator("mark").first).to_have_text(re.compile("ureter|stone", re.IGNORECASE))
    assert "q=ureter+stone" in page.url
    hits = predict_api.get("/search", params={"q": "ureter stone", "limit": 100}).json()["items"]
    paths = page.locator(".hit").evaluate_all("links => links.map((link) => link.pathname.split('/').at(-1))")
    assert paths == [hit["case"]["u_id"] for hit in hits][: len(paths)]
    assert paths


def test_a_sorted_search_still_marks_the_words(page: Page) -> None:
    page.goto("/?q=ureter+stone&sort=-age&view=images")
    expect(page.locator(".tile").first).to_be_visible()
    for tile in page.locator(".tile").all():
        expect(tile.locator("mark").first).to_have_text(re.compile("ureter|stone", re.IGNORECASE))


@pytest.mark.parametrize(("query", "hint"), [("the", "nearly every case holds"), ("-brain", "only excludes")])
def test_a_search_without_a_word_to_look_for_is_explained(page: Page, query: str, hint: str) -> None:
    page.goto(f"/?q={query}")
    expect(page.get_by_role("alert")).to_contain_text(hint)
    expect(page.get_by_role("button", name="Clear the search and the filters")).to_be_visible()
