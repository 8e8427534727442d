"""Uploads to the predict page and what it shows of them."""

from typing import Any

from playwright.sync_api import FilePayload, Page, expect

Document = dict[str, Any]


def png_file(name: str, data: bytes, kind: str = "image/png") -> FilePayload:
    return {"name": name, "mimeType": kind, "buffer": data}


def choose(page: Page, *files: FilePayload) -> None:
    page.get_by_label("Choose images").set_input_files(list(files))


def shows_status(page: Page, text: str) -> None:
    expect(page.locator("#status")).to_have_text(text, timeout=20_000)


def verdict_of(page: Page, task: str, item: str = "") -> str:
    return page.locator(f"{item}.verdict-slot[data-task={task}] .verdict strong").inner_text()
