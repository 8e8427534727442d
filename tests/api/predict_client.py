"""Questions to the models as tests ask them."""

from collections.abc import Mapping, Sequence

import httpx

CAPTION = "Axial CT: stone in the left ureter with hydronephrosis of the kidney"


def ask(
    client: httpx.Client,
    path: str,
    data: bytes,
    caption: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> httpx.Response:
    """Send one image; the caption to the addresses that take one."""
    form = None if caption is None or "/location" not in path else {"caption": caption}
    return client.post(path, files={"image": ("any.png", data)}, data=form, headers=headers)


def ask_many(
    client: httpx.Client, path: str, images: Sequence[bytes], captions: Sequence[str] | None = None
) -> httpx.Response:
    """Send many images."""
    files: list[tuple[str, tuple[str | None, bytes | str]]] = [("images", ("any.png", data)) for data in images]
    files += [("captions", (None, caption)) for caption in captions or ()]
    return client.post(path, files=files)


def stages(answer: httpx.Response) -> list[str]:
    """The stages in the header Server-Timing."""
    return [part.partition(";")[0] for part in answer.headers["server-timing"].split(", ")]


def is_problem(answer: httpx.Response, status: int) -> None:
    """Assert that an answer is a problem document with a status."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
