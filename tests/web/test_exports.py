"""Exports from the browse page, in a real Chromium."""

import csv
import re
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.web.browse_page import image_names
from tests.web.network import hold

pytestmark = pytest.mark.browser


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
    assert exported == (sorted(image_names(page)) if is_ranked else image_names(page))


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


def test_the_last_choice_of_an_export_wins(page: Page) -> None:
    page.goto("/?modality=CT&location=Spine")
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    asked = hold(page, re.compile(r"/images\?"))
    page.get_by_text("Export", exact=True).click()
    page.get_by_role("radio", name=re.compile("^JSON Lines")).check()
    page.get_by_role("radio", name=re.compile("^Raw")).check()
    link = page.locator("#export a")
    for route in reversed(asked):
        with page.expect_response(route.request.url):
            route.continue_()
        page.evaluate("new Promise(resolve => setTimeout(resolve, 50))")
    expect(link).to_have_attribute("href", re.compile("raw=true"))
    assert len(asked) == 3
