"""The models page and the about page in a real Chromium."""

import re
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect
from pymongo.database import Database

from ml.evaluation.evaluate import Results
from ml.registry.model_card import NEVER_CONFIDENT
from ml.registry.registry import Registry
from tests.conftest import Document
from tests.web.layout import fits, is_inside

pytestmark = pytest.mark.browser


def test_without_an_evaluation_it_says_how_to_get_one(page: Page, ml_database: Database[Document]) -> None:
    page.goto("/pages/models")
    names = [card.name for card in Registry(ml_database, Path()).cards()]
    for name in names:
        expect(page.locator("#board")).to_contain_text(name)
    expect(page.locator("#board")).to_contain_text("medpix evaluate")
    expect(page.locator("#detail")).to_contain_text("Not a medical device")
    assert "`" not in page.locator("main").inner_text()


def test_without_an_evaluation_the_dev_figures_are_shown_as_such(page: Page, ml_database: Database[Document]) -> None:
    page.goto("/pages/models")
    cards = {card.name: card for card in Registry(ml_database, Path()).cards()}
    table = page.get_by_role("table", name="Location (21 classes)")
    for name in ("compact", "caption-location", "fused-location"):
        scores = cards[name].metrics["dev"]["location"]
        row = table.get_by_role("row", name=name)
        expect(row.locator(".accuracy")).to_have_text(f"{scores['accuracy']:.3f}dev")
        expect(row).to_contain_text(f"{scores['accuracy_95'][0]:.2f} to {scores['accuracy_95'][1]:.2f}")
    expect(page.locator("#board .notice")).to_contain_text("The models were selected on it")


def test_an_evaluation_that_ends_meanwhile_is_shown(page: Page, request: pytest.FixtureRequest) -> None:
    page.clock.install()
    page.goto("/pages/models")
    table = page.get_by_role("table", name="Modality (2 classes)")
    expect(table.locator(".accuracy .tag")).to_have_text("dev")
    request.getfixturevalue("evaluated")
    page.clock.run_for(31_000)
    expect(table.locator(".accuracy .tag")).to_have_count(0)
    expect(page.get_by_role("img", name="Reliability diagram")).to_be_visible()


def test_an_evaluation_becomes_a_leaderboard(page: Page, evaluated: Path, web_results: Results) -> None:
    assert evaluated.is_dir()
    page.goto("/pages/models")
    table = page.get_by_role("table", name="Modality (2 classes)")
    scores = web_results["models"]["compact"]["tasks"]["modality"]["scores"]
    row = table.get_by_role("row", name="compact")
    expect(row).to_contain_text(f"{scores['accuracy']:.3f}")
    expect(row).to_contain_text(f"{scores['accuracy_95'][0]:.2f} to {scores['accuracy_95'][1]:.2f}")
    expect(table.get_by_role("row", name="majority class")).to_contain_text(
        f"{web_results['tasks']['modality']['majority']['accuracy']:.3f}"
    )
    expect(page.locator("#board > p").first).not_to_contain_text("dev")
    expect(page.locator("#details")).to_contain_text("Mahalanobis distance of its embedding from the training images")
    lefts = page.locator("#board td.chart").evaluate_all("cells => cells.map((cell) => cell.offsetLeft)")
    assert len(set(lefts)) == 1, "the lines of the tables do not stand below each other"


def test_a_narrow_leaderboard_hides_nothing(page: Page, evaluated: Path) -> None:
    assert evaluated.is_dir()
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto("/pages/models")
    row = page.get_by_role("table", name="Location (21 classes)").locator("tr.served")
    for part in (".tag", "svg", ".accuracy", ".interval", ".more >> nth=0", ".more >> nth=1"):
        expect(row.locator(part)).to_be_visible()
        assert is_inside(page, row.locator(part)), part
    assert fits(page)


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
    page.go_back()
    expect(page.locator("#model")).to_have_value("fused-location")
    expect(page.locator("#task")).to_have_value("location_category")
    page.go_forward()
    expect(page.locator("#model")).to_have_value("compact")
    page.reload()
    expect(page.locator("#model")).to_have_value("compact")
    task, audit = next((name, part["audit"]) for name, part in web_results["tasks"].items() if part["audit"]["items"])
    page.goto(f"/pages/models?model={audit['model']}&task={task}")
    page.get_by_role("region", name="Label audit").get_by_role("link").first.click()
    page.wait_for_url("**/pages/case/MPX*")


def test_a_card_says_all_that_the_api_knows(page: Page, predict_api: httpx.Client) -> None:
    card = predict_api.get("/models/compact").json()["card"]
    page.goto("/pages/models?model=compact&task=location")
    detail = page.locator("#detail")
    size = card["preprocess"]["size"]
    threshold, scores = card["thresholds"]["location"], card["metrics"]["dev"]["location"]
    rule = f"answers with a probability below {100 * threshold:.1f}% are uncertain"
    for words in (
        card["version"],
        f"{size} × {size} pixels, grey",
        f"temperature {card['temperature']['location']:.3f}",
        rule if threshold < NEVER_CONFIDENT else "no answer is confident: the surest ones were not right often enough",
        f"{scores['macro_f1']:.3f}",
        *card["limits"],
    ):
        expect(detail).to_contain_text(words)
    detail.get_by_text("21 classes").click()
    for name in card["tasks"]["location"]:
        expect(detail).to_contain_text(name)
    detail.get_by_text("files with SHA-256").click()
    for file in card["files"]:
        expect(detail).to_contain_text(file["sha256"])
    expect(detail.get_by_role("link", name="/models/compact")).to_be_visible()


def test_a_model_of_the_leaderboard_leads_to_its_card(page: Page) -> None:
    page.goto("/pages/models")
    page.get_by_role("table", name="Location (21 classes)").get_by_role("link", name="caption-location").click()
    expect(page.get_by_role("heading", name="One model in detail")).to_be_focused()
    expect(page.locator("#detail h3").first).to_have_text("caption-location")
    expect(page.locator("#task")).to_have_value("location")


def test_the_evaluation_report_has_an_address_and_a_link(
    page: Page, evaluated: Path, web_results: Results, complaints: list[str]
) -> None:
    assert evaluated.is_dir()
    page.goto("/pages/models")
    page.get_by_role("link", name="evaluation report").click()
    expect(page).to_have_url(re.compile("/evaluation/report$"))
    assert not complaints
    for name in ("Leakage", "Modality", "Location"):
        expect(page.get_by_role("heading", name=name, exact=True, level=2)).to_be_visible()
    expect(page.get_by_role("main")).to_contain_text("Label audit")
    scores = web_results["models"]["compact"]["tasks"]["modality"]["scores"]
    expect(page.get_by_role("main")).to_contain_text(f"{scores['accuracy']:.3f}")


def test_without_an_evaluation_there_is_no_link_to_its_report(page: Page, predict_api: httpx.Client) -> None:
    assert predict_api.get("/evaluation/report").json()["detail"].endswith("Run `medpix evaluate` first.")
    answer = page.goto("/evaluation/report")
    assert answer is not None
    assert answer.status == 404
    expect(page.get_by_role("main")).to_contain_text("Run `medpix evaluate` first.")
    page.goto("/pages/models")
    expect(page.get_by_role("table").first).to_be_visible()
    expect(page.get_by_role("link", name="evaluation report")).to_have_count(0)


def test_a_shared_card_opens_at_the_card(page: Page) -> None:
    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto("/pages/models")
    link = page.get_by_role("table", name="Location (21 classes)").get_by_role("link", name="fused-location")
    address = link.evaluate("link => link.href")
    for shared in (address, address.removesuffix("#details")):
        page.goto("/pages/about")
        page.goto(shared)
        expect(page.locator("#detail h3").first).to_have_text("fused-location")
        expect(page.locator("#details-title")).to_be_in_viewport()
        top = page.locator("#details-title").evaluate("title => title.getBoundingClientRect().top")
        assert 0 <= top < 200


def test_every_column_of_the_confusion_matrix_is_in_sight(page: Page, evaluated: Path) -> None:
    assert evaluated.is_dir()
    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto("/pages/models?model=fused-location&task=location")
    box = page.get_by_role("region", name="Confusion matrix of fused-location")
    expect(box).to_be_visible()
    assert box.evaluate("box => box.scrollWidth <= box.clientWidth")
    assert is_inside(page, page.locator(".confusion thead th").last)


def test_the_card_says_how_many_answers_are_confident(page: Page, evaluated: Path, web_results: Results) -> None:
    assert evaluated.is_dir()
    page.goto("/pages/models?model=compact&task=modality")
    sure = web_results["models"]["compact"]["tasks"]["modality"]["confident"]
    share = f"{100 * sure['coverage']:.0f}% of the test images get a confident answer"
    none = "none of the test images gets a confident answer: all answers are marked uncertain"
    expect(page.locator("#detail")).to_contain_text(share if sure["n"] else none)
    expect(page.locator("#detail")).to_contain_text("an image is out of distribution if the")


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


def test_the_about_page_says_how_good_the_models_are(page: Page, evaluated: Path, web_results: Results) -> None:
    assert evaluated.is_dir()
    page.goto("/pages/about")
    scores = web_results["models"]["compact"]["tasks"]["modality"]["scores"]
    expect(page.locator("#figures")).to_contain_text(
        f"Modality: compact has an accuracy of {100 * scores['accuracy']:.1f}% on the test images (95% interval"
    )


def test_the_about_page_without_an_evaluation_names_the_split(page: Page) -> None:
    page.goto("/pages/about")
    expect(page.locator("#figures")).to_contain_text("on the dev images")
    expect(page.locator("#figures")).to_contain_text("has not been evaluated on the test split yet")


def test_the_citation_can_be_copied(page: Page) -> None:
    page.goto("/pages/about")
    page.get_by_role("button", name="Copy the BibTeX entry").click()
    expect(page.get_by_role("status").filter(has_text="Copied.")).to_be_visible()
    entry = page.evaluate("navigator.clipboard.readText()")
    assert entry.startswith("@misc{")
    assert "2407.02994" in entry
    assert "2024" in entry
