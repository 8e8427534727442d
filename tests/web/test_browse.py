"""The browse page in a real Chromium."""

import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser


def test_shows_the_first_images_and_how_many_there_are(page: Page) -> None:
    page.goto("/")
    expect(page.get_by_role("status")).to_contain_text("images of 40 cases")
    expect(page.locator(".tile")).to_have_count(40)
