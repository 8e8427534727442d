"""What the browse page shows."""

import re

from playwright.sync_api import Page, expect


def image_names(page: Page) -> list[str]:
    links = page.locator(".tile").evaluate_all("tiles => tiles.map((tile) => decodeURIComponent(tile.hash.slice(1)))")
    return [str(name) for name in links]


def shows_images(page: Page, count: int) -> None:
    """In either view: so many images."""
    expect(page.locator("#status")).to_contain_text(re.compile(rf"(^| with ){count} images?\b"))
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
