"""Saved views, bookmarks and annotations."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, Route, expect
from pydantic import SecretStr
from pymongo.database import Database

from app.core.settings import Settings
from app.data.seed import seed
from tests.conftest import Document
from tests.web.network import hold

pytestmark = pytest.mark.browser

KEY = "a-key-of-16-characters"


@pytest.fixture(params=[False, True], ids=["open", "keys"])
def writable(
    request: pytest.FixtureRequest,
    settings: Settings,
    database: Database[Document],
    generated_dataset: Path,
    serve: Callable[[Settings], AbstractContextManager[httpx.Client]],
) -> Iterator[tuple[httpx.Client, bool]]:
    """A service of its own to write to, and whether it asks for a key."""
    seed(database, generated_dataset)
    keys = {"reader": SecretStr(KEY)} if request.param else {}
    with serve(settings.model_copy(update={"data_dir": generated_dataset, "api_keys": keys})) as client:
        yield client, request.param


def test_a_view_is_saved_opened_and_removed(page: Page) -> None:
    page.goto("/?modality=CT&sort=-age")
    expect(page.locator(".tile").first).to_be_visible()
    page.get_by_text("Saved", exact=True).click()
    menu = page.locator("#saved")
    expect(menu).to_contain_text("No views saved yet.")
    save = menu.get_by_role("button", name="Save this view")
    status = menu.get_by_role("status").element_handle()
    save.click()
    expect(save).to_be_focused()
    assert status.text_content() == "Saved."
    page.goto("/")
    page.get_by_text("Saved", exact=True).click()
    menu.get_by_role("link", name="Modality: CT, sorted by -age").click()
    expect(page.locator("#chips")).to_contain_text("Modality: CT")
    assert page.url.endswith("/?modality=CT&sort=-age")
    page.get_by_text("Saved", exact=True).click()
    menu.get_by_role("button", name="Remove Modality: CT").click()
    expect(menu).to_contain_text("No views saved yet.")
    expect(menu.get_by_role("button", name="Save this view")).to_be_focused()


def test_bookmarks_are_exported_and_imported(page: Page, predict_api: httpx.Client, tmp_path: Path) -> None:
    case = predict_api.get("/cases/MPX1003").json()
    page.goto("/pages/case/MPX1003")
    button = page.get_by_role("button", name="Bookmark")
    expect(button).to_have_attribute("aria-pressed", "false")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    page.goto("/")
    page.get_by_text("Saved", exact=True).click()
    expect(page.locator("#saved").get_by_role("link", name=case["title"])).to_have_attribute(
        "href", "/pages/case/MPX1003"
    )
    with page.expect_download() as download:
        page.get_by_role("button", name="Export as JSON").click()
    file = tmp_path / "saved.json"
    download.value.save_as(file)
    assert json.loads(file.read_text()) == {"views": [], "bookmarks": [{"u_id": "MPX1003", "title": case["title"]}]}
    page.evaluate("localStorage.clear()")
    page.reload()
    page.get_by_text("Saved", exact=True).click()
    expect(page.locator("#saved")).to_contain_text("No cases bookmarked yet.")
    page.locator("#saved-file").set_input_files(file)
    expect(page.locator("#saved").get_by_role("link", name=case["title"])).to_be_visible()


def test_an_import_takes_only_what_could_have_been_exported(page: Page, tmp_path: Path) -> None:
    page.goto("/")
    page.get_by_text("Saved", exact=True).click()
    file = tmp_path / "saved.json"
    file.write_text(
        json.dumps(
            {
                "views": [{"name": "x", "query": "javascript:window.hit=1"}, {"name": "<b>x</b>", "query": "?q=a"}],
                "bookmarks": [{"u_id": "../../docs", "title": "x"}],
            }
        )
    )
    page.locator("#saved-file").set_input_files(file)
    expect(page.locator("#saved li a")).to_have_text(["<b>x</b>"])
    (tmp_path / "no.json").write_text("{")
    page.locator("#saved-file").set_input_files(tmp_path / "no.json")
    expect(page.locator("#saved")).to_contain_text("no.json is not a JSON file.")


def test_a_bookmark_made_in_quiz_mode_does_not_tell_the_title(page: Page) -> None:
    page.goto("/pages/case/MPX1003?quiz=1")
    expect(page.get_by_label("Location")).to_be_visible()
    page.get_by_role("button", name="Bookmark").click()
    page.goto("/")
    page.get_by_text("Saved", exact=True).click()
    expect(page.locator("#saved li a")).to_have_text(["MPX1003"])


def test_an_annotation_is_written_and_stands_in_the_history(page: Page, writable: tuple[httpx.Client, bool]) -> None:
    client, needs_key = writable
    image = client.get("/cases/MPX1003").json()["images"][0]
    page.goto(f"{client.base_url}/pages/case/MPX1003")
    part = page.locator("#annotations")
    page.get_by_text("Annotations of this image").click()
    expect(part).to_contain_text("No annotations yet.")
    part.get_by_text("Correct a label or add a comment").click()
    save = part.get_by_role("button", name="Save annotation")
    save.click()
    expect(part).to_contain_text("Choose a corrected label or write a comment.")
    other = "MR" if image["modality"] == "CT" else "CT"
    part.get_by_label("Modality").select_option(other)
    part.get_by_label("Comment").fill("  <b>T1</b>, not CT  ")
    save.click()
    if needs_key:
        expect(part).to_contain_text("Writing requires an API key.")
        part.get_by_label("Key").fill("wrong")
        save.click()
        expect(part).to_contain_text("This key is not known.")
        part.get_by_label("Key").fill(KEY)
        save.click()
    expect(part.get_by_text("Saved.")).to_be_visible()
    expect(part.locator(".annotation")).to_contain_text(f"Modality: {other}")
    expect(part.locator(".annotation .long")).to_have_text("<b>T1</b>, not CT")
    expect(part.locator(".annotation b").first).to_have_text("reader" if needs_key else "anonymous")
    stored = client.get("/annotations", params={"image": image["image"]}).json()["items"]
    assert [(each["modality"], each["comment"]) for each in stored] == [(other, "<b>T1</b>, not CT")]
    # The latest one is first, and the key is asked for once in a tab.
    part.get_by_label("Comment").fill("second")
    save.click()
    expect(part.locator(".annotation")).to_have_count(2)
    expect(part.locator(".annotation .long").first).to_have_text("second")


@pytest.mark.parametrize("writable", [False], indirect=True, ids=["open"])
def test_an_annotation_whose_answer_was_lost_is_stored_once(page: Page, writable: tuple[httpx.Client, bool]) -> None:
    client, _ = writable
    page.goto(f"{client.base_url}/pages/case/MPX1003")
    part = page.locator("#annotations")
    fields = hold(page, re.compile("/fields$"))
    page.get_by_text("Annotations of this image").click()
    # The form is asked for twice before the catalogue is there.
    summary = part.get_by_text("Correct a label or add a comment")
    for _ in range(3):
        summary.click()
        page.wait_for_timeout(50)
    for route in fields:
        route.continue_()
    expect(part.locator("form")).to_have_count(1)

    def lose(route: Route) -> None:
        route.fetch()
        route.abort()

    path = re.compile("/images/.*/annotations$")
    page.route(path, lose, times=1)
    part.get_by_label("Comment").fill("once")
    part.get_by_role("button", name="Save annotation").click()
    expect(part).to_contain_text("cannot be reached")
    part.get_by_role("button", name="Try again").click()
    expect(part.get_by_text("Saved.")).to_be_visible()
    expect(part.locator(".annotation")).to_have_count(1)
    # The same words once more are another annotation.
    part.get_by_label("Comment").fill("once")
    part.get_by_role("button", name="Save annotation").click()
    expect(part.locator(".annotation")).to_have_count(2)
