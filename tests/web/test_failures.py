"""What the pages say of an API that fails, is slow, or is not ready yet."""

import re
from collections.abc import Callable

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from tests.web.network import hold

pytestmark = pytest.mark.browser

Answer = Callable[[Route], None]


def api(name: str) -> re.Pattern[str]:
    """The addresses of a route of the API, with any query: pages and scripts may bear the same name."""
    return re.compile(rf"^http://[^/]+/{name}(\?|$)")


def _broken(route: Route) -> None:
    route.fulfill(status=500, body="no JSON")


def _not_ready(route: Route) -> None:
    """What a proxy answers for a service that is not there: without Retry-After."""
    route.fulfill(status=503, body="no JSON")


def test_after_a_failure_nothing_of_the_last_result_is_left(page: Page, predict_api: httpx.Client) -> None:
    page.goto("/")
    expect(page.locator(".tile")).to_have_count(30)
    page.route(api("images"), _broken)
    page.get_by_role("checkbox", name=re.compile("^CT ")).check()
    expect(page.get_by_role("alert")).to_contain_text("failed (status 500)")
    expect(page.locator(".tile")).to_have_count(0)
    expect(page.locator("#export")).to_be_hidden()
    expect(page.locator("#status")).to_be_empty()
    # The filters are those of the address: what was chosen can be taken back.
    expect(page.get_by_role("checkbox", name=re.compile("^CT "))).to_be_checked()
    page.unroute(api("images"))
    page.get_by_role("checkbox", name=re.compile("^CT ")).uncheck()
    expect(page.locator("#status")).to_contain_text(f"with {predict_api.get('/facets').json()['total']} images")
    expect(page.locator(".tile")).to_have_count(30)


@pytest.mark.parametrize("query", ["?view=images", "?q=shows&view=images"])
def test_more_images_that_fail_can_be_asked_for_again(page: Page, query: str) -> None:
    page.goto(f"/{query}")
    more = page.get_by_role("button", name="Show more")
    expect(more).to_be_visible()
    before = page.locator(".tile").count()
    page.route(api("images"), _broken)
    more.click()
    sentence = page.get_by_text("The service failed (status 500)")
    expect(sentence).to_be_in_viewport()
    expect(more).to_be_in_viewport()
    expect(page.locator(".tile")).to_have_count(before)
    page.unroute(api("images"))
    while more.is_visible():
        before = page.locator(".tile").count()
        more.click()
        expect(page.locator(".tile").nth(before)).to_be_visible()
    expect(sentence).to_have_count(0)
    total = re.match(r"\d+", page.locator("#status").inner_text())
    assert total
    names = page.locator(".tile").evaluate_all("tiles => tiles.map((tile) => tile.dataset.image)")
    assert len(names) == len(set(names)) == int(total[0]), "images were left out, or came twice"


def test_without_counts_there_still_are_images_and_exports(page: Page) -> None:
    page.route(api("facets"), lambda route: route.fulfill(status=504, body="{}"))
    page.goto("/?split=train")
    expect(page.locator(".tile")).to_have_count(24)
    expect(page.locator("#export")).to_be_visible()
    expect(page.locator("#status")).to_have_text("24 cases shown.")
    expect(page.locator("#facets")).to_contain_text("The counts cannot be shown.")
    page.unroute(api("facets"))
    page.locator("#facets").get_by_role("button", name="Try again").click()
    expect(page.get_by_role("checkbox", name=re.compile("^train "))).to_be_checked()
    expect(page.locator("#status")).to_contain_text("cases")


def test_the_first_images_wait_for_nothing_else(page: Page) -> None:
    """Neither for the counts, nor for the fields, nor for the titles, nor for the images themselves."""
    routes = hold(page, re.compile(r"/(facets|fields|cases)(\?|$)|/thumbnail\?"))
    page.goto("/", wait_until="commit")
    expect(page.locator(".tile")).to_have_count(30)
    expect(page.locator("#export")).to_be_visible()
    for route in routes:
        route.abort()


def test_a_refusal_without_a_time_is_not_answered_with_a_flood(page: Page, png: bytes) -> None:
    page.clock.install(time=0)
    page.goto("/pages/predict")
    page.clock.pause_at(60_000)
    addresses: list[str] = []

    def refuse(route: Route) -> None:
        addresses.append(route.request.url)
        _not_ready(route)

    page.route("**/predict/*", refuse)
    page.get_by_label("Choose images").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": png})
    expect(page.locator("#status")).to_have_text("1 image waiting for a model.")
    slot = page.locator(".verdict-slot[data-task=location]")
    expect(slot).to_contain_text("retries automatically")
    expect(slot.locator(".error")).to_have_count(0)
    assert len(addresses) == 2
    # Each time in vain makes the next pause longer, on the clock of the page.
    for least in (5, 10, 20):
        before, seconds = len(addresses), 0
        for _ in range(5):
            page.evaluate("fetch('/health/live').then((answer) => answer.text())")
        assert len(addresses) == before, "asked again at once"
        while len(addresses) == before:
            assert seconds < 200, "never asked again"
            page.clock.run_for(1_000)
            seconds += 1
        assert seconds >= least
        expect(page.locator("#status")).to_have_text("1 image waiting for a model.")
    page.unroute("**/predict/*")
    for _ in range(200):
        page.clock.run_for(1_000)
        if page.locator("#status").inner_text() == "1 image analysed.":
            break
    expect(page.locator("#status")).to_have_text("1 image analysed.")


def test_what_is_not_ready_on_a_case_is_asked_for_again(page: Page) -> None:
    page.clock.install(time=0)
    page.goto("/pages/case/MPX1001")
    expect(page.locator("#case")).to_have_attribute("aria-busy", "false")
    page.clock.pause_at(60_000)
    page.route(re.compile("/(similar|predict)\\?"), _not_ready)
    page.get_by_role("button", name="Predict this image").click()
    page.locator("#similar").scroll_into_view_if_needed()
    for part in ("#prediction", "#similar"):
        expect(page.locator(part)).to_contain_text("retries automatically")
        expect(page.locator(f"{part} .error")).to_have_count(0)
    page.unroute_all()
    page.clock.run_for(20_000)
    expect(page.locator(".prediction")).to_have_count(2, timeout=20_000)
    expect(page.locator("#similar .tile").first).to_be_visible()


@pytest.mark.parametrize(("fault", "words"), [("broken", "failed (status 500)"), ("unreachable", "cannot be reached")])
def test_models_that_cannot_be_listed_are_asked_for_again(page: Page, fault: str, words: str) -> None:
    page.route(api("models"), _broken if fault == "broken" else lambda route: route.abort())
    page.goto("/pages/models")
    expect(page.get_by_role("alert")).to_contain_text(words)
    expect(page.locator("#details")).to_be_hidden()
    page.unroute(api("models"))
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("table", name="Modality (2 classes)")).to_be_visible()
    expect(page.get_by_role("alert")).to_be_empty()


def test_a_slow_list_of_models_says_that_it_loads(page: Page) -> None:
    routes = hold(page, api("models"))
    with page.expect_request(api("models")):
        page.goto("/pages/models", wait_until="commit")
    while not routes:
        page.wait_for_timeout(50)
    expect(page.locator("#board")).to_contain_text("Loading the models")
    expect(page.locator("#board")).to_have_attribute("aria-busy", "true")
    for route in routes:
        route.continue_()
    expect(page.get_by_role("table", name="Modality (2 classes)")).to_be_visible()


@pytest.mark.parametrize("answer", [_broken, lambda route: route.abort()])
def test_the_about_page_stays_true_without_the_api(page: Page, answer: Answer) -> None:
    page.route(re.compile("/(facets|models|evaluation)$"), answer)
    page.goto("/pages/about")
    page.wait_for_load_state("networkidle")
    expect(page.get_by_role("main")).to_contain_text("MedPix 2.0 holds teaching cases with CT and MR images.")
    expect(page.locator("#counts")).to_be_empty()
    expect(page.locator("#figures")).to_be_empty()
    expect(page.get_by_role("main")).to_contain_text("Not a medical device")


@pytest.mark.parametrize(
    "address", ["/pages/nothing", f"/pages/case/{'x' * 41}", "/pages/case/MPX1001/more", "/pages", "/nothing"]
)
def test_an_address_that_is_no_page_is_answered_for_people(page: Page, address: str) -> None:
    answer = page.goto(address)
    assert answer
    assert answer.status == 404
    expect(page.get_by_role("heading", level=1)).to_have_text("Page not found")
    page.get_by_role("link", name="Browse all cases").click()
    expect(page.locator(".tile").first).to_be_visible()


def test_a_slash_too_many_leads_to_the_page(predict_api: httpx.Client) -> None:
    answer = predict_api.get("/pages/models/", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "/pages/models")


def test_a_program_is_answered_with_a_problem_document(predict_api: httpx.Client) -> None:
    for accept in ("*/*", "application/json"):
        answer = predict_api.get("/nothing", headers={"Accept": accept})
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["vary"] == "Accept"
    # What the API itself does not find is data, whoever asks.
    answer = predict_api.get("/cases/MPX9999", headers={"Accept": "text/html"})
    assert answer.headers["content-type"] == "application/problem+json"
    assert predict_api.post("/nothing", headers={"Accept": "text/html"}).json()["status"] == 404
