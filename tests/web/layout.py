"""How a page stands on the screen."""

import os
from pathlib import Path
from typing import Final

from playwright.sync_api import Locator, Page

# The screens that every page is looked at: narrow and wide, light and dark.
# Each width and each scheme; not every pair, which takes minutes and has never found more.
SCREENS: Final = [(390, "dark"), (1440, "light"), (1600, "dark")]


def fits(page: Page) -> bool:
    """Whether nothing is wider than the page. The window also holds room for a scroll bar, so it is no measure."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= document.body.clientWidth"))


def is_inside(page: Page, part: Locator) -> bool:
    """Whether an element lies between the left and the right edge of the page."""
    box = part.bounding_box()
    width = page.evaluate("document.body.clientWidth")
    return box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width


def shoot(page: Page, name: str) -> None:
    """Save the whole page as NAME.png in the folder $MEDPIX_SCREENSHOTS, if that is set."""
    folder = os.environ.get("MEDPIX_SCREENSHOTS")
    if not folder:
        return
    # Images below the window are asked for when they come near.
    page.evaluate(
        "for (const image of document.querySelectorAll('img[loading=lazy]')) image.loading = 'eager'; scrollTo(0, 0)"
    )
    page.wait_for_load_state("networkidle")
    Path(folder).mkdir(parents=True, exist_ok=True)
    page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def watch_layout(page: Page) -> None:
    """Add up Chromium's layout-shift entries from the next address on."""
    page.add_init_script(
        "window.shift = 0; new PerformanceObserver(list => { for (const entry of list.getEntries()) "
        "if (!entry.hadRecentInput) window.shift += entry.value; }).observe({type: 'layout-shift', buffered: true});"
    )


def jumps(page: Page) -> float:
    """The sum so far; up to 0.1 counts as good."""
    return float(page.evaluate("window.shift"))
