import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.data.fields import IMAGE_FIELDS
from app.data.filters import ParameterError
from app.data.pagination import decode_cursor, encode_cursor, parse_sort


def test_a_sort_order_ends_with_the_id() -> None:
    assert parse_sort(None, IMAGE_FIELDS).mongo == [("_id", 1)]
    assert parse_sort("-age, location", IMAGE_FIELDS).mongo == [("norm.age", -1), ("norm.location", 1), ("_id", 1)]
    assert parse_sort("-image", IMAGE_FIELDS).mongo == [("_id", -1)]


@pytest.mark.parametrize(
    "text", ["colour", "caption", "quality_flags", "age,-age", "-", "image,split,age,sex,plane,width"]
)
def test_what_cannot_be_sorted_is_refused(text: str) -> None:
    with pytest.raises(ParameterError, match="sort"):
        parse_sort(text, IMAGE_FIELDS)


def test_a_cursor_keeps_its_place_and_knows_its_filter() -> None:
    order = parse_sort("-age", IMAGE_FIELDS)
    document = {"_id": "MPX1007_synpic46719", "norm": {"age": 7}}
    cursor = encode_cursor(document, order, "sex=male")
    assert decode_cursor(cursor, order, "sex=male") == {
        "$or": [
            {"$or": [{"norm.age": {"$lt": 7}}, {"norm.age": None}]},
            {"$and": [{"norm.age": 7}, {"_id": {"$gt": "MPX1007_synpic46719"}}]},
        ]
    }
    with pytest.raises(ParameterError, match="another filter"):
        decode_cursor(cursor, order, "sex=female")
    with pytest.raises(ParameterError, match="another filter"):
        decode_cursor(cursor, parse_sort("split", IMAGE_FIELDS), "sex=male")


def test_keys_behind_the_id_decide_nothing() -> None:
    assert parse_sort("sex,-image,age", IMAGE_FIELDS).canonical == "sex,-image"


@given(st.one_of(st.text(max_size=60), st.binary(max_size=60).map(lambda b: base64.urlsafe_b64encode(b).decode())))
def test_no_text_is_taken_for_a_cursor(text: str) -> None:
    with pytest.raises(ParameterError, match="cursor"):
        decode_cursor(text, parse_sort(None, IMAGE_FIELDS), "")


@pytest.mark.parametrize("keys", [[{"$gt": ""}], [None], [1.5], [], ["a", "b"], [[1]], [2**70], "x"])
def test_a_forged_cursor_carries_no_operator(keys: object) -> None:
    order = parse_sort(None, IMAGE_FIELDS)
    good = json.loads(base64.urlsafe_b64decode(encode_cursor({"_id": "x"}, order, "") + "=="))
    forged = base64.urlsafe_b64encode(json.dumps({**good, "k": keys}).encode()).decode()
    with pytest.raises(ParameterError, match="not a cursor"):
        decode_cursor(forged, order, "")
