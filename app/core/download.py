"""Downloads one file over HTTP; a download that broke off goes on where it stopped."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx

from app.core.exceptions import UserError

ProgressCallback = Callable[[int, int | None], None]

_ATTEMPTS: Final = 5
_BUSY: Final = frozenset({429, 500, 502, 503, 504})
_FIRST_PAUSE_S: Final = 1.0
_TIMEOUT_S: Final = 30.0


class DownloadError(UserError):
    """A file could not be downloaded; what was received is kept for the next attempt."""


def download(url: str, part: Path, progress: ProgressCallback, *, advice: str) -> None:
    """Receive a file; what an earlier attempt left in ``part`` is not received again if the server still has the same.

    Args:
        url: of the file.
        part: file to write to; it is whole only when this returns.
        progress: called with bytes received and bytes in all (None where the server does not say).
        advice: what to do after a failure, in a sentence.

    Raises:
        DownloadError: no connection, or it broke off several times.
        OSError: the file cannot be written.
    """
    tag_file = part.with_suffix(".etag")
    failure: Exception | None = None
    with httpx.Client(follow_redirects=True, timeout=_TIMEOUT_S) as client:
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_FIRST_PAUSE_S * 2 ** (attempt - 1))
            try:
                _receive(client, url, part, tag_file, progress)
            except httpx.HTTPStatusError as error:
                if error.response.status_code not in _BUSY:
                    raise DownloadError(f"{url} answers {error.response.status_code}. Is the address right?") from error
                failure = error
            except httpx.TransportError as error:
                failure = error
            except (httpx.InvalidURL, httpx.TooManyRedirects) as error:
                raise DownloadError(f"{url} cannot be used ({error}). Is the address right?") from error
            else:
                tag_file.unlink(missing_ok=True)
                return
    received = part.stat().st_size if part.exists() else 0
    raise DownloadError(
        f"The download from {httpx.URL(url).host} broke off {_ATTEMPTS} times ({failure or 'no answer'}); "
        f"{received / 1e6:.0f} MB are kept. {advice}"
    ) from failure


def _receive(client: httpx.Client, url: str, part: Path, tag_file: Path, progress: ProgressCallback) -> None:
    """Go on from what is there if the server still has the same file, else start over."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if have and tag_file.exists():
        headers |= {"Range": f"bytes={have}-", "If-Range": tag_file.read_text()}
    with client.stream("GET", url, headers=headers) as answer:
        if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # everything was received; the hash will tell
        answer.raise_for_status()
        resumed = answer.status_code == httpx.codes.PARTIAL_CONTENT
        have = have if resumed else 0
        length = answer.headers.get("content-length")
        total = have + int(length) if length else None
        if tag := answer.headers.get("etag"):
            tag_file.write_text(tag)
        with part.open("ab" if resumed else "wb") as file:
            for chunk in answer.iter_raw():
                file.write(chunk)
                have += len(chunk)
                progress(have, total)
