"""Quiz mode: nothing tells the answer before it is asked for."""

import re
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser

Document = dict[str, Any]
STEPS = ("Show findings and captions", "Show the diagnosis and everything else")


@pytest.fixture
def case(predict_api: httpx.Client) -> Document:
    """A case whose texts and captions are all there."""
    cases = predict_api.get("/cases", params={"limit": 100, "findings__isnull": "false"}).json()["items"]
    for summary in cases:
        document: Document = predict_api.get(summary["links"]["self"]).json()
        is_complete = all(document[name] for name in ("title", "diagnosis", "history", "location", "discussion"))
        if is_complete and all(image["caption"] for image in document["images"]):
            return document
    raise AssertionError("no case of the generated dataset has all texts")


def _secrets(case: Document) -> dict[str, str]:
    captions = {f"caption {index}": image["caption"] for index, image in enumerate(case["images"])}
    texts = {name: case[name] for name in ("title", "diagnosis", "findings", "discussion", "differential_diagnosis")}
    topic = {name: case["topic"][name] for name in ("title", "category", "disease_discussion")}
    return {name: text for name, text in {**texts, **captions, **topic}.items() if text}


def _leaked(page: Page, case: Document) -> set[str]:
    """The secrets that are anywhere in the page: in texts, attributes, its title or its address."""
    content = page.evaluate(
        "() => [document.title, location.href, ...[...document.querySelectorAll('html *')].flatMap((node) =>"
        " [...[...node.attributes].map((each) => each.value),"
        "  ...[...node.childNodes].filter((each) => each.nodeType === 3).map((each) => each.data)])].join(' | ')"
    )
    return {name for name, text in _secrets(case).items() if text in content}


def _begin(page: Page, case: Document) -> None:
    page.goto(f"/pages/case/{case['u_id']}?quiz=1")
    expect(page.get_by_role("heading", level=1)).to_have_text("Unknown case")
    expect(page.locator("#stage")).to_have_attribute("aria-busy", "false")
    expect(page.get_by_label("Location")).to_be_visible()


def _answer(page: Page, modality: str, location: str) -> None:
    page.get_by_role("radio", name=modality).check()
    page.get_by_label("Location").select_option(location)
    page.get_by_role("button", name="Check my answer").click()


def test_nothing_tells_the_answer(page: Page, case: Document) -> None:
    _begin(page, case)
    page.mouse.wheel(0, 5000)
    page.wait_for_load_state("networkidle")
    assert _leaked(page, case) == set()
    expect(page).to_have_title("Unknown case · MedPix service")
    # The question is there: the history, and every image without what it shows.
    expect(page.locator("[data-field=history]")).to_contain_text(case["history"])
    expect(page.locator("#strip a")).to_have_count(len(case["images"]) if len(case["images"]) > 1 else 0)
    assert case["location"] not in page.locator("#case-line").inner_text()
    assert case["images"][0]["modality"] not in page.locator(".pane-label").first.inner_text()
    for part in ("#similar-part", "#beside"):
        expect(page.locator(part)).to_be_hidden()
    expect(page.locator("#similar .tile")).to_have_count(0)
    expect(page.locator("#image-facts > *")).to_have_count(0)


def test_the_answer_is_shown_step_by_step(page: Page, case: Document) -> None:
    _begin(page, case)
    page.get_by_text("Annotations of this image").evaluate("part => part.closest('details').open = true")
    page.get_by_role("button", name="Show without answering").click()
    expect(page.locator("#quiz-title")).to_be_focused()
    expect(page.locator("#case-line")).to_contain_text(case["location"])
    assert _leaked(page, case) == set()
    page.get_by_role("button", name=STEPS[0]).click()
    expect(page.locator("[data-field=findings]")).to_contain_text(case["findings"])
    expect(page.locator("#caption")).to_contain_text(case["images"][0]["caption"])
    assert not _leaked(page, case) & {"title", "diagnosis", "discussion", "disease_discussion"}
    page.get_by_role("button", name=STEPS[1]).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(case["title"])
    expect(page.locator("[data-field=diagnosis]")).to_contain_text(case["diagnosis"])
    expect(page.locator("#quiz-title")).to_be_focused()
    expect(page.locator("#annotations")).to_contain_text("No annotations yet.")
    page.locator("#similar").scroll_into_view_if_needed()
    expect(page.locator("#similar .tile").first).to_be_visible(timeout=20_000)
    # Another visit begins anew.
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_have_text("Unknown case")


def test_an_answer_stands_beside_the_label_and_the_model(page: Page, predict_api: httpx.Client, case: Document) -> None:
    image = case["images"][0]
    model = predict_api.get(f"{image['links']['self']}/predict", params={"caption": "false"}).json()
    _begin(page, case)
    options = page.get_by_label("Location").locator("option").all_inner_texts()
    wrong = next(value for value in options[1:] if value != image["location"])
    _answer(page, image["modality"], wrong)
    for task, own, verdict in (("modality", image["modality"], "right"), ("location", wrong, "wrong")):
        cells = page.locator(f".quiz tr[data-task={task}] td")
        expect(cells.nth(0)).to_have_text(image[task])
        expect(cells.nth(1)).to_have_text(f"{own} {verdict}")
        expect(cells.nth(2)).to_contain_text(model[task]["prediction"]["label"])
    expect(page.locator(".score")).to_contain_text("Your score: modality 1 of 1, location 0 of 1.")
    right = {task: int(model[task]["prediction"]["label"] == image[task]) for task in ("modality", "location")}
    expect(page.locator(".score")).to_contain_text(
        f"The model on the same images: modality {right['modality']} of 1, location {right['location']} of 1."
    )
    assert _leaked(page, case) == set()

    # A case counts once, and the score is of this browser alone.
    page.reload()
    _answer(page, image["modality"], image["location"])
    expect(page.locator(".quiz")).to_contain_text("it is not counted again")
    expect(page.locator(".score")).to_contain_text("location 0 of 1")
    page.get_by_role("button", name="Reset score").click()
    expect(page.locator(".quiz")).to_contain_text("No cases answered yet")


def test_the_next_case_is_unknown_from_the_first_moment(page: Page, predict_api: httpx.Client, case: Document) -> None:
    _begin(page, case)
    page.get_by_role("button", name="Show without answering").click()
    for step in STEPS:
        page.get_by_role("button", name=step).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(case["title"])
    page.evaluate(
        "() => { window.titles = new Set(); new MutationObserver(() => window.titles.add(document.body.innerText))"
        ".observe(document.body, {subtree: true, childList: true, characterData: true}); }"
    )
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("heading", level=1)).to_have_text("Unknown case")
    expect(page.get_by_label("Location")).to_be_visible()
    other = predict_api.get(f"/cases/{page.url.split('?')[0].split('/')[-1]}").json()
    assert other["u_id"] != case["u_id"]
    texts = " | ".join(page.evaluate("[...window.titles]"))
    assert not [text for name, text in _secrets(other).items() if text in texts and text not in _secrets(case).values()]


def test_one_click_and_one_key_turn_it_on_and_off(page: Page, case: Document) -> None:
    page.goto(f"/pages/case/{case['u_id']}")
    expect(page.get_by_role("heading", level=1)).to_have_text(case["title"])
    page.keyboard.press("q")
    expect(page.get_by_role("heading", level=1)).to_have_text("Unknown case")
    expect(page).to_have_url(re.compile(r"\?quiz=1"))
    expect(page.get_by_role("button", name="Quiz mode")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Quiz mode").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(case["title"])
    expect(page.locator(".quiz")).to_have_count(0)
    assert "quiz" not in page.url


def test_similar_cases_come_back_with_the_answer(page: Page, case: Document) -> None:
    page.goto(f"/pages/case/{case['u_id']}")
    page.locator("#similar").scroll_into_view_if_needed()
    expect(page.locator("#similar .tile").first).to_be_visible(timeout=20_000)
    page.keyboard.press("q")
    expect(page.locator("#similar .tile")).to_have_count(0)
    page.keyboard.press("q")
    page.locator("#similar").scroll_into_view_if_needed()
    expect(page.locator("#similar .tile").first).to_be_visible(timeout=20_000)


def test_the_browse_page_hides_it_too(page: Page, predict_api: httpx.Client) -> None:
    page.goto("/")
    expect(page.locator(".case-tile").first).to_be_visible()
    page.keyboard.press("q")
    expect(page.locator(".tile .name").first).to_have_text("Unknown case")
    titles = {case["title"] for case in predict_api.get("/cases", params={"limit": 30}).json()["items"]}
    results = page.locator("#results").inner_html()
    assert not [title for title in titles if title and title in results]
    page.locator(".tile").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Unknown case")
    expect(page).to_have_url(re.compile("quiz=1"))


def test_a_random_unknown_case_is_of_the_current_result(page: Page, predict_api: httpx.Client) -> None:
    cases = predict_api.get("/images", params={"location": "Spine", "limit": 100}).json()["items"]
    ids = {image["u_id"] for image in cases}
    page.goto("/?location=Spine")
    expect(page.locator(".tile").first).to_be_visible()
    page.get_by_role("button", name="Random unknown").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Unknown case")
    assert page.url.split("?")[0].split("/")[-1] in ids
    assert "location=Spine&quiz=1" in page.url
    # Those that were answered come last.
    answered: list[str] = []
    for _ in range(min(3, len(ids))):
        answered.append(page.url.split("?")[0].split("/")[-1])
        expect(page.get_by_label("Location")).to_be_visible()
        _answer(page, "CT", "Spine")
        page.get_by_role("button", name="Next unknown case").click()
        expect(page.get_by_label("Location")).to_be_visible()
    assert set(answered) <= ids
    assert page.evaluate("JSON.parse(localStorage['medpix-quiz']).asked") == len(set(answered))


def test_the_only_case_of_a_result_is_not_drawn_again(page: Page, case: Document) -> None:
    page.goto(f"/pages/case/{case['u_id']}?u_id={case['u_id']}&quiz=1")
    expect(page.get_by_role("heading", level=1)).to_have_text("Unknown case")
    expect(page.get_by_label("Location")).to_be_visible()
    page.keyboard.press("n")
    expect(page.locator("#problem")).to_contain_text("No other case matches.")
    assert f"/{case['u_id']}?" in page.url
