"""The models page and the about page in a real Chromium."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect
from pymongo.database import Database

from app.config import Settings
from ml.evaluate import Results
from ml.registry import Registry
from ml.report import write_report
from tests.conftest import Document

pytestmark = pytest.mark.browser


@pytest.fixture
def evaluated(web_results: Results, predict_settings: Settings) -> Iterator[Path]:
    """The folder of a real evaluation, where the service looks for it."""
    folder = predict_settings.home / "evaluation"
    folder.mkdir()
    write_report(web_results, folder)
    yield folder
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def test_without_an_evaluation_it_says_how_to_get_one(page: Page, ml_database: Database[Document]) -> None:
    page.goto("/pages/models")
    names = [card.name for card in Registry(ml_database, Path()).list()]
    for name in names:
        expect(page.locator("#board")).to_contain_text(name)
    expect(page.locator("#board")).to_contain_text("medpix evaluate")
    expect(page.locator("#detail")).to_contain_text("Not a medical device")


def test_an_evaluation_becomes_a_leaderboard(page: Page, evaluated: Path, web_results: Results) -> None:
    assert evaluated.is_dir()
    page.goto("/pages/models")
    table = page.get_by_role("table", name="Modality (2 classes)")
    scores = web_results["models"]["compact"]["tasks"]["modality"]["scores"]
    row = table.get_by_role("row", name="compact")
    expect(row).to_contain_text(f"{scores['accuracy']:.3f}")
    expect(row).to_contain_text(f"{scores['accuracy_95'][0]:.2f} to {scores['accuracy_95'][1]:.2f}")
    expect(table).to_contain_text("baseline")


def test_one_model_is_shown_in_detail(page: Page, evaluated: Path, web_results: Results) -> None:
    assert evaluated.is_dir()
    page.goto("/pages/models?model=fused-location&task=location_category")
    matrix = web_results["models"]["fused-location"]["tasks"]["location_category"]["confusion"]["matrix"]
    cells = page.locator(".confusion td").all_inner_texts()
    page.locator(".confusion").wait_for()
    cells = page.locator(".confusion td").all_inner_texts()
    assert sum(int(cell) for cell in cells if cell.strip()) == sum(map(sum, matrix))
    expect(page.get_by_role("img", name="Reliability diagram")).to_be_visible()
    page.locator("#model").select_option("compact")
    expect(page.get_by_role("img", name="Training loss")).to_be_visible()
    assert "model=compact" in page.url
    audit = page.get_by_role("region", name="Label audit").get_by_role("link")
    if audit.count():
        audit.first.click()
        expect(page).to_have_url("**/pages/case/MPX*")


def test_a_damaged_evaluation_is_said_in_a_sentence(page: Page, evaluated: Path) -> None:
    (evaluated / "results.json").write_text('{"models": ')
    page.goto("/pages/models")
    expect(page.get_by_role("alert")).to_contain_text("Run `medpix evaluate` again")
    expect(page.locator("#board")).to_contain_text("compact")


def test_the_about_page_counts_what_is_there(page: Page, predict_api: httpx.Client) -> None:
    facets = predict_api.get("/facets").json()
    page.goto("/pages/about")
    expect(page.locator("#counts")).to_contain_text(f"{facets['total']} images of {facets['cases']} cases")
    expect(page.get_by_role("main")).to_contain_text("Not a medical device")
    expect(page.get_by_role("link", name="arXiv 2407.02994")).to_be_visible()
