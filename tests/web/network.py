"""A network that keeps requests waiting."""

import re

from playwright.sync_api import Page, Route


def hold(page: Page, pattern: str | re.Pattern[str]) -> list[Route]:
    """Keep every request to matching addresses; ``continue_`` lets one through."""
    routes: list[Route] = []

    def keep(route: Route) -> None:
        routes.append(route)

    page.route(pattern, keep)
    return routes
