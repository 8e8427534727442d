"""Regular expressions decide in linear time, and the same as on the values themselves."""

import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pymongo.database import Database
from pymongo.errors import OperationFailure

from app.data import regex_filter, schema
from app.data.fields import CASE_FIELDS
from app.data.filters import ParameterError, parse_filter

Document = dict[str, Any]


def _all(api: httpx.Client, path: str, **parameters: str) -> Iterator[dict[str, Any]]:
    answer = api.get(path, params={**parameters, "limit": "100"})
    assert answer.status_code == 200, answer.text
    yield from answer.json()["items"]


@pytest.mark.parametrize(
    "pattern", ["left (ureter|temporal)", "^axial ct", r"kidney\.$", "LUNG", "(a|b)*c", "zebra", r"\bwall\b"]
)
def test_the_same_images_as_by_matching_each_caption(api: httpx.Client, pattern: str) -> None:
    captions = {image["image"]: image["caption"] for image in _all(api, "/images")}
    images = {image["image"] for image in _all(api, "/images", caption__regex=pattern)}
    assert images == {key for key, text in captions.items() if text and re.search(pattern, text, re.IGNORECASE)}


def test_a_pattern_that_blows_up_a_backtracking_matcher_is_answered(api: httpx.Client) -> None:
    started = time.perf_counter()
    images = list(_all(api, "/images", caption__regex=r"(.|\s)*(.|\s)*(.|\s)*ureter(\w|\s)*kidney"))
    assert time.perf_counter() - started < 5
    assert {image["image"] for image in images} == {
        image["image"] for image in _all(api, "/images", caption__regex=r"ureter[\w\s]*kidney")
    }
    assert images


def test_other_conditions_and_lists_apply(api: httpx.Client) -> None:
    both = {i["image"] for i in _all(api, "/images", caption__regex="ureter", modality="CT", quality_flags__regex=".")}
    ct = {i["image"] for i in _all(api, "/images", caption__regex="ureter", modality="CT") if i["quality_flags"]}
    assert both == ct


def test_every_reader_resolves_the_pattern(api: httpx.Client) -> None:
    images = api.get("/images", params={"caption__regex": "ureter"}).json()["total"]
    assert images > 0
    assert api.get("/facets", params={"caption__regex": "ureter"}).json()["total"] == images
    assert len(api.get("/export", params={"caption__regex": "ureter", "format": "jsonl"}).text.splitlines()) == images
    assert api.get("/statistics", params={"caption__regex": "ureter"}).json()["total"] == images
    cases = {case["u_id"] for case in _all(api, "/cases", findings__regex="ureter")}
    hits = api.get("/search", params={"q": "left", "findings__regex": "ureter", "limit": 100}).json()
    assert {hit["case"]["u_id"] for hit in hits["items"]} == cases
    assert api.get("/annotations", params={"comment__regex": "."}).json()["total"] == 0


@pytest.mark.parametrize("pattern", ["(", r"(a)\1", "(?=a)b", "a++", "a{2000}", r"\pL{200}"])
def test_what_re2_cannot_read_is_refused(pattern: str) -> None:
    with pytest.raises(ParameterError, match="not a regular expression of RE2"):
        parse_filter([("title__regex", pattern)], CASE_FIELDS, {})


def test_a_filter_that_was_not_resolved_fails(generated_database: Database[Document]) -> None:
    query = parse_filter([("title__regex", "a")], CASE_FIELDS, {}).query
    assert regex_filter.has_regex(query)
    with pytest.raises(OperationFailure):
        generated_database[schema.CASES].find_one(query)


def test_matching_stops_at_the_deadline_within_a_batch(api: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    # As with a pattern whose automaton does not fit into memory, which takes longer than that for one document.
    search = regex_filter._holds

    def slow(value: Any, path: list[str], compiled: Any) -> bool:
        time.sleep(0.2)
        return search(value, path, compiled)

    monkeypatch.setattr(regex_filter, "_holds", slow)
    monkeypatch.setattr(regex_filter, "MAX_TIME_S", 0.5)
    started = time.perf_counter()
    answer = api.get("/images", params={"caption__regex": "a ston[e] in"})
    assert answer.status_code == 504, answer.text
    assert time.perf_counter() - started < 3
