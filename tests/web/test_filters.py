"""Filters on the browse page, in a real Chromium."""

import re

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from tests.web.browse_page import shows_images
from tests.web.layout import fits, is_inside
from tests.web.network import hold

pytestmark = pytest.mark.browser


def test_facets_filter_and_the_address_keeps_them(page: Page, predict_api: httpx.Client) -> None:
    page.goto("/")
    page.get_by_role("checkbox", name=re.compile("^CT ")).check()
    expected = predict_api.get("/facets", params={"modality": "CT"}).json()
    shows_images(page, expected["total"])
    assert page.url.endswith("/?modality=CT")
    # The other value still says how many there would be.
    mr_total = predict_api.get("/facets", params={"modality": "MR"}).json()["total"]
    expect(page.get_by_role("checkbox", name=f"MR {mr_total}")).not_to_be_checked()
    page.get_by_role("checkbox", name=re.compile("^Head ")).check()
    both = predict_api.get("/facets", params={"modality": "CT", "location_category": "Head"}).json()
    shows_images(page, both["total"])

    page.go_back()
    shows_images(page, expected["total"])
    expect(page.get_by_role("checkbox", name=re.compile("^Head "))).not_to_be_checked()
    page.go_forward()
    shows_images(page, both["total"])
    page.reload()
    shows_images(page, both["total"])
    expect(page.get_by_role("checkbox", name=re.compile("^CT "))).to_be_checked()

    page.get_by_role("button", name="Remove the filter Modality: CT").click()
    shows_images(page, predict_api.get("/facets", params={"location_category": "Head"}).json()["total"])


@pytest.mark.parametrize(
    ("query", "checked"),
    [
        ("type=ct", ["CT"]),
        ("plane__in=axial, Coronal", ["Axial", "Coronal"]),
    ],
)
def test_what_an_address_filters_is_checked(page: Page, query: str, checked: list[str]) -> None:
    page.goto(f"/?{query}")
    boxes = page.locator("#facets").get_by_role("checkbox", checked=True)
    expect(boxes).to_have_count(len(checked))
    for value in checked:
        expect(page.get_by_role("checkbox", name=re.compile(f"^{value} "))).to_be_checked()
    # The values that are not chosen are counted too, and go with one click.
    field = boxes.first.locator("xpath=ancestor::fieldset")
    assert field.get_by_role("checkbox", include_hidden=True).count() > len(checked)
    for value in checked:
        page.get_by_role("checkbox", name=re.compile(f"^{value} ")).uncheck()
    expect(page.locator("#chips button")).to_have_count(0)


def test_topics_that_are_not_chosen_can_be_chosen_too(page: Page) -> None:
    def answer(route: Route) -> None:
        body = route.fetch().json()
        # The dataset of the tests has one topic: another one, which only an answer without the filter counts.
        if "u_id__in" not in route.request.url:
            body["facets"]["topic.category"].append({"value": "Trauma", "count": 3, "filter": None})
        route.fulfill(json=body, status=200)

    page.route(re.compile(r"/facets(\?|$)"), answer)
    page.goto("/?topic.category=Neoplasm, benign")
    expect(page.get_by_role("checkbox", name="Neoplasm, benign")).to_be_checked()
    page.get_by_role("checkbox", name="Trauma 3").click()
    expect(page).to_have_url(re.compile(r"topic.category__in=Neoplasm%2C\+benign%7CTrauma"))
    page.unroute_all(behavior="ignoreErrors")


def test_every_operator_has_words(page: Page) -> None:
    page.goto("/?location__ne=Spine&plane__nin=Axial|Coronal&title__startswith=a")
    words = ["Location is not Spine", "Plane is none of Axial, Coronal", "Title starts with a"]
    expect(page.locator("#chips .text")).to_have_text(words)
    expect(page.locator("#filter-field option")).not_to_have_count(0)
    page.locator("#filter-field").select_option("quality_flags")
    options = page.locator("#filter-operator option").all_inner_texts()
    assert not {"ne", "nin", "all", "startswith"} & set(options)


def test_several_values_of_a_facet_mean_any_of_them(page: Page, predict_api: httpx.Client) -> None:
    page.goto("/?plane=Axial")
    page.get_by_role("checkbox", name=re.compile("^Coronal ")).check()
    shows_images(page, predict_api.get("/facets", params={"plane__in": "Axial|Coronal"}).json()["total"])


def test_one_band_of_ages_can_be_chosen(page: Page, predict_api: httpx.Client) -> None:
    page.goto("/")
    band = predict_api.get("/facets").json()["facets"]["age_band"][0]
    ages = page.get_by_role("group", name="Age")
    expect(ages.get_by_role("checkbox")).to_have_count(0)
    expect(ages.get_by_role("radio", name="Any")).to_be_checked()
    ages.get_by_role("radio", name=re.compile(f"^{band['value'].replace('-', '–')} ")).check()
    shows_images(page, band["count"])
    expect(ages.get_by_role("radio", name="Any")).not_to_be_checked()
    ages.get_by_role("radio", name="Any").check()
    shows_images(page, predict_api.get("/facets").json()["total"])


def test_unknown_says_that_it_stands_alone(page: Page, predict_api: httpx.Client) -> None:
    page.goto("/?sex=male")
    page.get_by_role("group", name="Sex").get_by_role("checkbox", name=re.compile("^Unknown ")).check()
    shows_images(page, predict_api.get("/facets", params={"sex__isnull": "true"}).json()["total"])
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
    shows_images(page, predict_api.get("/facets", params={"sex__isnull": "false"}).json()["total"])


def test_any_field_can_be_a_filter(page: Page, predict_api: httpx.Client) -> None:
    page.goto("/")
    page.locator("#filter-field").select_option("history")
    page.locator("#filter-operator").select_option("contains")
    page.locator("#filter-value").fill("male with pain")
    page.get_by_role("button", name="Add filter").click()
    expect(page.get_by_role("button", name="Remove the filter History contains male with pain")).to_be_visible()
    cases = predict_api.get("/cases", params={"history__contains": "male with pain", "limit": 100}).json()["items"]
    shows_images(page, sum(case["image_count"] for case in cases))


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
    shows_images(page, counts["total"])
    expect(page.get_by_role("spinbutton", name="Age to")).to_have_value("61")
    # A band of ages takes its place, and so does none.
    page.get_by_role("radio", name="Any").check()
    expect(page.locator("#chips")).not_to_contain_text("Age")
    expect(page.get_by_role("spinbutton", name="Age to")).to_have_value("")


def test_a_long_filter_can_be_removed_on_a_narrow_screen(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(f"/?caption__contains={'verylong' * 20}")
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    assert is_inside(page, page.locator(".chips .x"))
    assert fits(page)
