"""Regular expressions over stored values, in RE2: time linear in the text for every pattern.

MongoDB's own matcher backtracks, and where it gives up it reports no match and no error. So a
``__regex`` condition is never sent to MongoDB: the documents that pass the other conditions are read,
RE2 decides, and the condition becomes the list of their ids.
"""

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import re2
from pymongo.asynchronous.collection import AsyncCollection

from app.core.exceptions import DeadlineExceededError, UnprocessableError

Document = dict[str, Any]

# MongoDB refuses a condition of this name: a filter that was not resolved fails instead of answering wrongly.
CONDITION: Final = "$re2"
MAX_CANDIDATES: Final = 20_000
MAX_TIME_S: Final = 2.0
_BATCH: Final = 500
# Of one compiled pattern: a class of Unicode that is repeated takes most, and the time goes with it (up to 20 ms).
_MAX_PATTERN_BYTES: Final = 1024**2
# Threads of their own: a pattern whose automaton does not fit into RE2's memory takes 0.1 ms a character, and a client
# that left does not stop it before the deadline. What else runs in threads, such as reading files, does not wait.
_THREADS: Final = ThreadPoolExecutor(2, thread_name_prefix="regex")
_UNSUPPORTED: Final = re.compile(r"\(\?(?:=|!|<[=!]|>|\()|\\[1-9]|\(\?P=|[*+?}]\+")


def condition(path: str, pattern: str) -> Document:
    """The condition that a stored path matches a pattern, letter case ignored.

    Raises:
        ValueError: RE2 cannot read the pattern.
    """
    _compile(pattern)
    return {CONDITION: {"path": path, "pattern": pattern}}


def _compile(pattern: str) -> Any:
    options = re2.Options()
    options.case_sensitive = False
    options.log_errors = False
    options.max_mem = _MAX_PATTERN_BYTES
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        cause = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
        if _UNSUPPORTED.search(pattern):
            cause += "; look-around, back-references and possessive quantifiers are not in RE2's syntax"
        raise ValueError(f"is not a regular expression of RE2: {cause}") from None


def has_regex(query: Document) -> bool:
    """Whether a query holds a condition of this module."""
    return any(CONDITION in part for part in _parts(query))


async def resolve(collection: AsyncCollection[Document], query: Document) -> Document:
    """A query with its regular expressions replaced by the ids of the documents that match them.

    Raises:
        UnprocessableError: more than ``MAX_CANDIDATES`` documents pass the other conditions.
        DeadlineExceededError: reading and matching took longer than ``MAX_TIME_S``.
    """
    parts = _parts(query)
    conditions = [part for part in parts if CONDITION not in part]
    regexes = [part[CONDITION] for part in parts if CONDITION in part]
    keys: list[Any] = []
    ends, loop = time.monotonic() + MAX_TIME_S, asyncio.get_running_loop()
    projection = {"_id": 1, **{regex["path"]: 1 for regex in regexes}}
    candidates = collection.find(
        {"$and": conditions} if conditions else {}, projection, batch_size=_BATCH, max_time_ms=int(1000 * MAX_TIME_S)
    ).limit(MAX_CANDIDATES + 1)
    count = 0
    tests = [(regex["path"].split("."), _compile(regex["pattern"]).search) for regex in regexes]
    async with candidates:
        while batch := await candidates.to_list(_BATCH):
            count += len(batch)
            if count > MAX_CANDIDATES:
                raise UnprocessableError(
                    f"A regular expression is matched against at most {MAX_CANDIDATES} documents. "
                    "Add conditions that leave fewer."
                )
            keys += await loop.run_in_executor(_THREADS, _matching, batch, tests, ends)
    return {"_id": {"$in": keys}}


def _parts(query: Document) -> list[Document]:
    """The conditions that must all hold, out of nested ``$and``."""
    if list(query) != ["$and"]:
        return [query]
    return [part for each in query["$and"] for part in _parts(each)]


def _matching(batch: list[Document], tests: Sequence[tuple[list[str], Callable[[str], Any]]], ends: float) -> list[Any]:
    keys = []
    for row in batch:
        if time.monotonic() > ends:
            raise DeadlineExceededError("The regular expression was not matched in time. Add other conditions.")
        if all(_holds(row, path, search) for path, search in tests):
            keys.append(row["_id"])
    return keys


def _holds(value: Any, path: list[str], search: Callable[[str], Any]) -> bool:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    values = value if isinstance(value, list) else [value]
    return any(isinstance(item, str) and search(item) for item in values)
