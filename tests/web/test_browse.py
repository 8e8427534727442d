"""The browse page in a real Chromium."""

import csv
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from tests.web.layout import fits, is_inside
from tests.web.network import hold

pytestmark = pytest.mark.browser


def _names(page: Page) -> list[str]:
    links = page.locator(".tile").evaluate_all("tiles => tiles.map((tile) => decodeURIComponent(tile.hash.slice(1)))")
    return [str(name) for name in links]


def _found(page: Page, count: int) -> None:
    """In either view: so many images."""
    expect(page.locator("#status")).to_contain_text(re.compile(rf"(^| with ){count} images?\b"))
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")


def test_shows_the_first_images_and_how_many_there_are(
    page: Page, predict_api: httpx.Client, shoot: Callable[[str], None]
) -> None:
    total = predict_api.get("/facets").json()["total"]
    page.goto("/?view=images")
    expect(page.locator("#status")).to_have_text(f"{total} images of 40 cases.")
    first = predict_api.get("/images", params={"limit": 40}).json()["items"]
    assert _names(page) == [image["image"] for image in first]
    expect(page.locator(".tile img").first).to_have_js_property("complete", value=True)
    assert page.locator(".tile img").first.evaluate("image => image.naturalWidth") > 0
    shoot("browse")


def test_cases_come_first_each_with_its_first_image(page: Page, predict_api: httpx.Client) -> None:
    page.goto("/")
    facets = predict_api.get("/facets").json()
    expect(page.locator("#status")).to_have_text(f"{facets['cases']} cases with {facets['total']} images.")
    cases = predict_api.get("/cases", params={"limit": 30, "sort": "u_id"}).json()["items"]
    cards = page.locator(".case-tile")
    ids = cards.evaluate_all("cards => cards.map((card) => card.dataset.case)")
    assert ids[:30] == [case["u_id"] for case in cases]
    for index, case in enumerate(cases[:6]):
        first = predict_api.get(case["links"]["self"]).json()["images"][0]["image"]
        expect(cards.nth(index)).to_have_attribute("href", re.compile(rf"#{first}$"))
        expect(cards.nth(index).locator(".name")).to_have_text(case["title"] or case["u_id"])
        expect(cards.nth(index)).to_contain_text(" and ".join(case["modalities"]))
        count = case["image_count"]
        expect(cards.nth(index)).to_contain_text(f"{count} image{'' if count == 1 else 's'}")


def test_the_switch_between_cases_and_images_keeps_the_filters(page: Page, predict_api: httpx.Client) -> None:
    page.goto("/?modality=MR")
    expect(page.locator(".case-tile").first).to_be_visible()
    page.get_by_role("button", name="Images", exact=True).click()
    expect(page).to_have_url(re.compile(r"/\?modality=MR&view=images$"))
    expected = predict_api.get("/images", params={"modality": "MR", "limit": 40}).json()["items"]
    expect(page.locator(".tile")).to_have_count(len(expected))
    assert _names(page) == [image["image"] for image in expected]
    page.get_by_role("button", name="Cases", exact=True).click()
    expect(page.locator(".case-tile").first).to_be_visible()
    # The card of a case with both modalities leads to the image that was filtered for.
    covers = {image["u_id"]: image["image"] for image in reversed(expected)}
    first = page.locator(".case-tile").first
    assert _names(page)[0] == covers[first.get_attribute("data-case") or ""]


def test_an_order_that_only_cases_have(page: Page, predict_api: httpx.Client) -> None:
    page.goto("/")
    expect(page.get_by_label("Sort").locator("option")).to_have_count(6)
    page.get_by_label("Sort").select_option("Most images first")
    expect(page).to_have_url(re.compile("sort=-image_count"))
    cases = predict_api.get("/cases", params={"sort": "-image_count", "limit": 30}).json()["items"]
    expect(page.locator(".case-tile").first).to_have_attribute("data-case", cases[0]["u_id"])
    ids = page.locator(".case-tile").evaluate_all("cards => cards.map((card) => card.dataset.case)")
    assert ids[:24] == [case["u_id"] for case in cases[:24]]


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


def test_a_tile_shows_that_its_image_is_loading(page: Page) -> None:
    thumbnails = hold(page, "**/thumbnail?*")
    page.goto("/", wait_until="commit")
    frame = page.locator(".tile .frame").first
    expect(frame).to_have_class(re.compile("loading"))
    expect(page.locator(".tile")).to_have_count(30)
    while thumbnails:
        thumbnails.pop().continue_()
    expect(frame).not_to_have_class(re.compile("loading"))


def test_facets_filter_and_the_address_keeps_them(page: Page, predict_api: httpx.Client) -> None:
    page.goto("/")
    page.get_by_role("checkbox", name=re.compile("^CT ")).check()
    expected = predict_api.get("/facets", params={"modality": "CT"}).json()
    _found(page, expected["total"])
    assert page.url.endswith("/?modality=CT")
    # The other value still says how many there would be.
    mr_total = predict_api.get("/facets", params={"modality": "MR"}).json()["total"]
    expect(page.get_by_role("checkbox", name=f"MR {mr_total}")).not_to_be_checked()
    page.get_by_role("checkbox", name=re.compile("^Head ")).check()
    both = predict_api.get("/facets", params={"modality": "CT", "location_category": "Head"}).json()
    _found(page, both["total"])

    page.go_back()
    _found(page, expected["total"])
    expect(page.get_by_role("checkbox", name=re.compile("^Head "))).not_to_be_checked()
    page.go_forward()
    _found(page, both["total"])
    page.reload()
    _found(page, both["total"])
    expect(page.get_by_role("checkbox", name=re.compile("^CT "))).to_be_checked()

    page.get_by_role("button", name="Remove the filter Modality: CT").click()
    _found(page, predict_api.get("/facets", params={"location_category": "Head"}).json()["total"])


def test_several_values_of_a_facet_mean_any_of_them(page: Page, predict_api: httpx.Client) -> None:
    page.goto("/?plane=Axial")
    page.get_by_role("checkbox", name=re.compile("^Coronal ")).check()
    _found(page, predict_api.get("/facets", params={"plane__in": "Axial|Coronal"}).json()["total"])


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


def test_a_sort_order_holds(page: Page, predict_api: httpx.Client) -> None:
    page.goto("/?view=images")
    page.get_by_label("Sort").select_option("-age")
    expect(page).to_have_url(re.compile("sort=-age"))
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    expected = predict_api.get("/images", params={"sort": "-age", "limit": 40}).json()["items"]
    assert _names(page) == [image["image"] for image in expected]


def test_a_sorted_search_still_marks_the_words(page: Page) -> None:
    page.goto("/?q=ureter+stone&sort=-age&view=images")
    expect(page.locator(".tile").first).to_be_visible()
    for tile in page.locator(".tile").all():
        expect(tile.locator("mark").first).to_have_text(re.compile("ureter|stone", re.IGNORECASE))


def test_one_band_of_ages_can_be_chosen(page: Page, predict_api: httpx.Client) -> None:
    page.goto("/")
    band = predict_api.get("/facets").json()["facets"]["age_band"][0]
    ages = page.get_by_role("group", name="Age")
    expect(ages.get_by_role("checkbox")).to_have_count(0)
    expect(ages.get_by_role("radio", name="Any")).to_be_checked()
    ages.get_by_role("radio", name=re.compile(f"^{band['value'].replace('-', '–')} ")).check()
    _found(page, band["count"])
    expect(ages.get_by_role("radio", name="Any")).not_to_be_checked()
    ages.get_by_role("radio", name="Any").check()
    _found(page, predict_api.get("/facets").json()["total"])


def test_unknown_says_that_it_stands_alone(page: Page, predict_api: httpx.Client) -> None:
    page.goto("/?sex=male")
    page.get_by_role("group", name="Sex").get_by_role("checkbox", name=re.compile("^Unknown ")).check()
    _found(page, predict_api.get("/facets", params={"sex__isnull": "true"}).json()["total"])
    expect(page.get_by_role("checkbox", name=re.compile("^male "))).not_to_be_checked()


def test_conditions_are_those_that_make_sense(page: Page, predict_api: httpx.Client) -> None:
    page.goto("/")
    expect(page.locator("#filter-field option")).not_to_have_count(0)
    page.locator("#filter-field").select_option("sex")
    words = page.locator("#filter-operator").locator("option").all_inner_texts()
    assert "is at least" not in words
    page.locator("#filter-field").select_option("modality")
    assert "is unknown" not in page.locator("#filter-operator").locator("option").all_inner_texts()
    page.locator("#filter-field").select_option("sex")
    page.locator("#filter-operator").select_option("is known")
    page.get_by_role("button", name="Add filter").click()
    expect(page.locator("#chips")).to_contain_text("Sex is known")
    _found(page, predict_api.get("/facets", params={"sex__isnull": "false"}).json()["total"])


def test_any_field_can_be_a_filter(page: Page, predict_api: httpx.Client) -> None:
    page.goto("/")
    page.locator("#filter-field").select_option("history")
    page.locator("#filter-operator").select_option("contains")
    page.locator("#filter-value").fill("male with pain")
    page.get_by_role("button", name="Add filter").click()
    expect(page.get_by_role("button", name="Remove the filter History contains male with pain")).to_be_visible()
    cases = predict_api.get("/cases", params={"history__contains": "male with pain", "limit": 100}).json()["items"]
    _found(page, sum(case["image_count"] for case in cases))


def test_show_more_goes_on_and_is_kept(page: Page, predict_api: httpx.Client) -> None:
    page.goto("/?view=images")
    page.get_by_role("button", name="Show more").click()
    expect(page.locator(".tile")).to_have_count(80)
    page.reload()
    expect(page.locator(".tile")).to_have_count(80)
    page.get_by_role("button", name="Show more").click()
    total = predict_api.get("/facets").json()["total"]
    expect(page.locator(".tile")).to_have_count(total)
    expect(page.get_by_role("button", name="Show more")).to_be_hidden()
    assert len(set(_names(page))) == total


def test_back_from_a_case_finds_the_place_that_was_left(page: Page) -> None:
    page.goto("/?view=images")
    page.get_by_role("button", name="Show more").click()
    expect(page.locator(".tile")).to_have_count(80)
    tile = page.locator(".tile").nth(70)
    tile.click()
    expect(page).to_have_url(re.compile("/pages/case/"))
    expect(page.locator("#case")).to_have_attribute("aria-busy", "false")
    page.go_back()
    expect(page.locator(".tile")).to_have_count(80)
    expect(tile).to_be_in_viewport()


@pytest.mark.parametrize("way", ["link", "Escape", "Back"])
def test_the_way_back_from_a_case_leads_to_its_place(page: Page, way: str) -> None:
    page.goto("/?sort=-age")
    expect(page.locator(".tile")).to_have_count(30)
    page.get_by_role("button", name="Show more").click()
    expect(page.locator(".tile")).to_have_count(40)
    names = _names(page)
    page.locator(".tile").nth(36).click()
    expect(page.locator("#case-place")).to_have_text("Case 37 of 40")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#case-place")).to_have_text("Case 38 of 40")
    if way == "link":
        page.get_by_role("link", name="Back to results").click()
    elif way == "Escape":
        page.keyboard.press("Escape")
    else:
        page.go_back()
    expect(page.locator(".tile").nth(37)).to_be_visible()
    assert _names(page)[:38] == names[:38]
    if way != "Back":
        expect(page.locator(".tile").nth(37)).to_be_in_viewport()
        expect(page.locator(".tile").nth(37)).to_be_focused()


def test_filters_chosen_before_the_counts_come_add_up(page: Page) -> None:
    page.goto("/")
    group = page.get_by_role("group", name="Modality", exact=True)
    expect(group).to_be_visible()
    hold(page, re.compile(r"/facets\?"))
    group.get_by_role("checkbox", name=re.compile("^CT")).check()
    expect(page.locator("#chips")).to_contain_text("Modality: CT")
    page.get_by_role("group", name="Location category").get_by_role("checkbox", name=re.compile("^Head")).check()
    expect(page.locator("#chips")).to_contain_text("Location category: Head")
    expect(page.locator("#chips")).to_contain_text("Modality: CT")


def test_any_range_of_ages_can_be_typed(page: Page, predict_api: httpx.Client) -> None:
    page.goto("/?modality=CT")
    page.get_by_role("spinbutton", name="Age from").fill("30")
    page.get_by_role("spinbutton", name="Age to").fill("61")
    page.keyboard.press("Enter")
    expect(page.locator("#chips")).to_contain_text("Age ≥ 30")
    expect(page.locator("#chips")).to_contain_text("Age ≤ 61")
    counts = predict_api.get("/facets", params={"modality": "CT", "age__gte": 30, "age__lte": 61}).json()
    _found(page, counts["total"])
    expect(page.get_by_role("spinbutton", name="Age to")).to_have_value("61")
    # A band of ages takes its place, and so does none.
    page.get_by_role("radio", name="Any").check()
    expect(page.locator("#chips")).not_to_contain_text("Age")
    expect(page.get_by_role("spinbutton", name="Age to")).to_have_value("")


def _export(page: Page, tmp_path: Path, **choices: str) -> Path:
    page.get_by_text("Export", exact=True).click()
    for group, choice in choices.items():
        page.get_by_role("group", name=group).get_by_role("radio", name=re.compile(f"^{choice}")).check()
    link = page.get_by_role("link", name="Download")
    expect(link).to_have_attribute("href", re.compile("^/export"))
    with page.expect_download() as download:
        link.click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    return file


def _column(file: Path, name: str) -> list[str]:
    with file.open(encoding="utf-8-sig", newline="") as rows:
        return [row[name] for row in csv.DictReader(rows)]


def test_on_a_phone_all_actions_stand_in_one_row(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto("/")
    expect(page.locator(".case-tile").first).to_be_visible()
    buttons = page.locator(".actions").locator("button, summary")
    assert buttons.count() == 4
    assert len(set(buttons.evaluate_all("all => all.map((each) => each.getBoundingClientRect().top)"))) == 1
    assert is_inside(page, buttons.last)


@pytest.mark.parametrize("query", ["q=ureter&modality=CT", "modality=CT&sort=-age"])
def test_an_export_holds_exactly_what_is_shown(page: Page, tmp_path: Path, query: str) -> None:
    page.goto(f"/?{query}&view=images")
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    while page.get_by_role("button", name="Show more").is_visible():
        count = page.locator(".tile").count()
        page.get_by_role("button", name="Show more").click()
        expect(page.locator(".tile").nth(count)).to_be_visible()
    exported = _column(_export(page, tmp_path, Format="CSV"), "image")
    is_ranked = "q=" in query
    expect(page.locator("#export")).to_contain_text("Sorted by case id." if is_ranked else "Sorted as shown.")
    assert exported == (sorted(_names(page)) if is_ranked else _names(page))


def test_an_export_of_cases_holds_the_cases_that_are_shown(
    page: Page, tmp_path: Path, predict_api: httpx.Client
) -> None:
    page.goto("/?modality=CT&age__gte=40")
    file = _export(page, tmp_path, Format="CSV")
    assert file.name == "medpix-cases.csv"
    params: dict[str, str | int] = {"modality": "CT", "age__gte": 40, "limit": 100}
    expected = {image["u_id"] for image in predict_api.get("/images", params=params).json()["items"]}
    assert _column(file, "u_id") == sorted(expected)


def test_an_export_of_records_has_the_diagnosis_beside_the_caption(
    page: Page, tmp_path: Path, predict_api: httpx.Client
) -> None:
    page.goto("/?modality=CT&location_category=Head")
    file = _export(page, tmp_path, What="Records", Format="CSV")
    params: dict[str, str | int] = {"modality": "CT", "location_category": "Head", "limit": 100, "expand": "case"}
    images = predict_api.get("/images", params=params).json()["items"]
    with file.open(encoding="utf-8-sig", newline="") as rows:
        by_image = {row["image"]: row for row in csv.DictReader(rows)}
    assert set(by_image) == {image["image"] for image in images}
    name = next(column for column in next(iter(by_image.values())) if column.endswith("diagnosis"))
    for image in images:
        assert by_image[image["image"]][name] == (image["case"]["diagnosis"] or "")


def test_choices_of_an_export_that_exclude_each_other_cannot_be_made(page: Page) -> None:
    page.goto("/")
    page.get_by_text("Export", exact=True).click()
    values = page.get_by_role("group", name="Values")
    expect(values.get_by_role("radio", name=re.compile("^Raw"))).to_be_disabled()
    page.get_by_role("radio", name=re.compile("^JSON Lines")).check()
    values.get_by_role("radio", name=re.compile("^Raw")).check()
    expect(page.get_by_role("link", name="Download")).to_have_attribute("href", re.compile("raw=true"))
    expect(page.get_by_role("radio", name=re.compile("^ZIP"))).to_be_disabled()
    page.get_by_role("radio", name=re.compile("^Images")).check()
    page.get_by_role("radio", name=re.compile("^ZIP")).check()
    expect(page.get_by_role("link", name="Download")).to_have_attribute("href", "/export?of=images&format=zip")
    page.keyboard.press("Escape")
    expect(page.get_by_role("link", name="Download")).to_be_hidden()


def test_an_empty_result_says_what_to_do(page: Page) -> None:
    page.goto('/?q="nothing+like+this"&modality=CT')
    expect(page.locator("#status")).to_have_text("No results.")
    for hint in ("No cases match.", "Use fewer or other words", "Leave out the quotation marks", "Remove one of"):
        expect(page.locator("#results")).to_contain_text(hint)
    expect(page.locator("#export")).to_be_hidden()
    page.get_by_role("button", name="Remove all filters").click()
    expect(page.locator("#chips button")).to_have_count(0)
    page.get_by_role("button", name="Clear the search").click()
    expect(page.locator(".tile").first).to_be_visible()


@pytest.mark.parametrize(("query", "hint"), [("the", "nearly every case holds"), ("-brain", "only excludes")])
def test_a_search_without_a_word_to_look_for_is_explained(page: Page, query: str, hint: str) -> None:
    page.goto(f"/?q={query}")
    expect(page.get_by_role("alert")).to_contain_text(hint)
    expect(page.get_by_role("button", name="Clear the search and the filters")).to_be_visible()


@pytest.mark.parametrize("address", ["/?sort=nothing", "/?age__gte=old&modality=CT"])
def test_what_cannot_be_asked_can_be_left(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_role("button", name="Clear the search and the filters").click()
    expect(page.locator(".tile")).to_have_count(30)
    assert page.url.endswith("/")


def test_a_condition_that_cannot_be_used_is_explained(page: Page) -> None:
    page.goto("/?age__gte=old")
    expect(page.get_by_role("alert")).to_contain_text("age__gte")
    page.get_by_role("button", name="Clear the search and the filters").click()
    expect(page.locator(".tile")).to_have_count(30)


@pytest.mark.parametrize("fault", ["broken", "unreachable", "not JSON"])
def test_a_failing_api_is_said_and_can_be_asked_again(page: Page, fault: str) -> None:
    def answer(route: Route) -> None:
        if fault == "unreachable":
            route.abort()
        elif fault == "broken":
            route.fulfill(status=500, content_type="application/json", body="{}")
        else:
            route.fulfill(status=200, content_type="application/json", body='{"items": [')

    page.route("**/images?*", answer)
    page.goto("/")
    words = {"broken": "failed (status 500)", "unreachable": "cannot be reached", "not JSON": "incomplete"}[fault]
    expect(page.get_by_role("alert")).to_contain_text(words)
    page.unroute("**/images?*")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".tile")).to_have_count(30)
    expect(page.get_by_role("alert")).to_be_empty()


def test_on_a_slow_network_the_last_choice_wins(page: Page, predict_api: httpx.Client) -> None:
    lists: list[Route] = []
    page.route("**/images?*", lambda route: lists.append(route) if not lists else route.continue_())
    page.goto("/")
    expect(page.locator(".skeleton")).to_be_visible()
    expect(page.get_by_role("checkbox", name=re.compile("^MR "))).to_be_visible()
    page.get_by_role("checkbox", name=re.compile("^MR ")).check()
    _found(page, predict_api.get("/facets", params={"modality": "MR"}).json()["total"])
    names = _names(page)
    for route in lists:
        route.continue_()
    page.get_by_role("checkbox", name=re.compile("^CT ")).focus()
    assert _names(page) == names


def test_the_keyboard_walks_the_grid(page: Page) -> None:
    page.goto("/")
    tiles = page.locator(".tile")
    tiles.first.focus()
    page.keyboard.press("ArrowRight")
    expect(tiles.nth(1)).to_be_focused()
    page.keyboard.press("ArrowDown")
    below = page.evaluate("document.activeElement.getBoundingClientRect().top")
    assert below > tiles.nth(1).evaluate("tile => tile.getBoundingClientRect().top")
    page.keyboard.press("ArrowUp")
    expect(tiles.nth(1)).to_be_focused()
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("searchbox")).not_to_be_focused()
    tiles.nth(1).focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("/pages/case/MPX"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_shows_all_without_scrolling_sideways(
    page: Page, scheme: str, shoot: Callable[[str], None]
) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme="light" if scheme == "light" else "dark")
    page.goto("/?q=ureter")
    expect(page.locator(".tile").first).to_be_visible()
    assert fits(page)
    toggle = page.get_by_role("button", name="Filters", exact=True)
    expect(page.get_by_role("checkbox", name=re.compile("^CT "))).to_be_hidden()
    toggle.click()
    expect(page.get_by_role("checkbox", name=re.compile("^CT "))).to_be_visible()
    assert fits(page)
    shoot(f"browse-narrow-{scheme}")
    # One heading is enough, the count of the filters stands on the toggle, and there is a way back to the images.
    expect(page.get_by_role("heading", name=re.compile("^Filters"))).to_be_hidden()
    page.get_by_role("checkbox", name=re.compile("^CT ")).check()
    expect(page.get_by_role("button", name="Filters (1)")).to_be_visible()
    done = page.locator("#filters-done")
    expect(done).to_be_in_viewport()
    expect(done).to_have_text(re.compile(r"^Show \d+ cases?$"))
    done.click()
    expect(page.get_by_role("checkbox", name=re.compile("^CT "))).to_be_hidden()
    expect(page.locator("#status")).to_be_in_viewport()


def test_a_long_filter_can_be_removed_on_a_narrow_screen(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(f"/?caption__contains={'verylong' * 20}")
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    assert is_inside(page, page.locator(".chips .x"))
    assert fits(page)


def test_an_image_that_cannot_be_had_is_said_in_its_place(page: Page) -> None:
    page.route("**/thumbnail?*", lambda route: route.abort())
    page.goto("/")
    expect(page.locator(".tile").first).to_contain_text("no image")
    page.mouse.wheel(0, 20_000)
    expect(page.locator(".tile img")).to_have_count(0)


def test_markup_in_data_and_address_stays_text(page: Page, hostile_site: str) -> None:
    page.goto(f'{hostile_site}/?q=lesion&title__contains=<img src=x onerror="window.hit=1">')
    expect(page.locator(".hit .name").first).to_contain_text("<img src=x")
    expect(page.locator(".chips")).to_contain_text("<img src=x")
    page.goto(f'{hostile_site}/?image=<script>window.hit=1</script>&sort="><script>window.hit=1</script>')
    expect(page.get_by_role("alert")).not_to_be_empty()
    assert page.evaluate("window.hit") is None


@pytest.mark.medpix
def test_the_real_dataset_can_be_browsed(page: Page, medpix_api: httpx.Client) -> None:
    page.goto(str(medpix_api.base_url))
    expect(page.locator("#status")).to_have_text("671 cases with 2,050 images.")
    page.get_by_role("checkbox", name="CT 1,062").check()
    expect(page.locator("#status")).to_have_text(re.compile(r"^\d+ cases with 1,062 images\.$"))
    page.get_by_role("searchbox").fill("ureter stone")
    page.keyboard.press("Enter")
    expect(page.locator(".hit mark").first).to_be_visible()
    # Who is faster than the counts sees only "Case 1" on the page of the case.
    expect(page.locator("#status")).to_have_text(re.compile(r"^\d+ cases with \d+ images for "))
    page.locator(".hit").first.click()
    expect(page.locator("#case-place")).to_have_text(re.compile(r"^Case 1 of \d+$"))
