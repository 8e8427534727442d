import re
import time
from collections.abc import Mapping
from typing import Any

import pytest

from app.data.fields import CASE_FIELDS, IMAGE_ALIASES, IMAGE_FIELDS, Field
from app.data.filters import ParameterError, operators_of, parse_filter
from app.data.typography import composed, literal_pattern


def _query(*parameters: tuple[str, str]) -> object:
    return parse_filter(parameters, IMAGE_FIELDS, IMAGE_ALIASES).query


def test_exact_is_the_default_and_conditions_are_combined_with_and() -> None:
    assert _query() == {}
    assert _query(("sex", "male")) == {"norm.sex": "male"}
    both = {"$and": [{"norm.age": 1}, {"norm.modality": "CT"}]}
    assert _query(("type", "ct"), ("age", "1")) == both


def test_values_that_were_recorded_for_unknown_ask_for_null() -> None:
    assert _query(("sex", "N/A")) == {"norm.sex": None}
    assert _query(("age", "0")) == {"norm.age": None}
    assert _query(("acr_codes", "-1.-1")) == {"norm.acr_codes": None}


def test_text_is_escaped_in_contains_and_taken_in_regex() -> None:
    assert _query(("caption__contains", "T1 (axial).*")) == {
        "norm.caption": {"$regex": "T1[\\s\u00a0]+\\(axial\\)\\.\\*", "$options": "i"}
    }
    assert _query(("caption__regex", "^axial")) == {"$re2": {"path": "norm.caption", "pattern": "^axial"}}


def test_in_takes_commas_only_where_no_value_has_one() -> None:
    assert _query(("split__in", "train,dev")) == {"$or": [{"split": "train"}, {"split": "dev"}]}
    assert _query(("location__in", "Chest, Pulmonary|Spine")) == {
        "$or": [{"norm.location": "Chest, Pulmonary"}, {"norm.location": "Spine"}]
    }
    assert _query(("location__in", "Nerve, central"), ("location__in", "Spine")) == {
        "$or": [{"norm.location": "Nerve, central"}, {"norm.location": "Spine"}]
    }


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("colour", "red", "there is no field of this name"),
        ("captoin", "x", "Did you mean caption?"),
        ("$where", "1", "there is no field of this name"),
        ("age", "$gt", "expected an integer"),
        ("age", "99999999999999999999", "out of range"),
        ("age__contains", "1", "unknown operator 'contains'"),
        ("age__", "1", "Did you mean age?"),
        ("age__near", "1", "age__gte, age__lte"),
        ("sex__gte", "N/A", "stands for what was not recorded"),
        ("modality", "PET", "expected one of CT, MR"),
        ("sex", "", "expected one of male, female, N/A"),
        ("plane__isnull", "maybe", "expected true or false"),
        ("caption__regex", "a" * 201, "1 to 200 characters"),
        ("caption", "a" * 501, "longer than 500"),
        ("caption", "a\0b", "NUL"),
        ("split__in", " , ", "names no value"),
        ("caption__contains", "", "is empty"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_a_reason(parameter: str, value: str, message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        _query((parameter, value))
    assert message in str(caught.value)
    assert len(caught.value.problems) == 1


def test_every_fault_is_listed_and_conditions_are_limited() -> None:
    with pytest.raises(ParameterError) as caught:
        _query(("age", "x"), ("colour", "red"), ("sex", "male"), ("sex", "female"))
    assert [problem.parameter for problem in caught.value.problems] == ["age", "colour", "sex"]
    for parameters in ([("caption__contains", "a")] * 21, [(f"unknown{number}", "a") for number in range(30_000)]):
        with pytest.raises(ParameterError) as caught:
            _query(*parameters)
        assert str(caught.value) == "more than 20 conditions"


def test_the_canonical_form_does_not_depend_on_the_order() -> None:
    one = parse_filter([("age", "1"), ("sex", "male")], IMAGE_FIELDS, IMAGE_ALIASES)
    other = parse_filter([("sex", "male"), ("age", "1")], IMAGE_FIELDS, IMAGE_ALIASES)
    assert one.canonical == other.canonical


@pytest.mark.parametrize("catalogue", [IMAGE_FIELDS, CASE_FIELDS], ids=["images", "cases"])
def test_every_field_takes_every_operator_that_it_offers(catalogue: Mapping[str, Field]) -> None:
    formed = {"image": "MPX1007_synpic46719", "u_id": "mpx1007", "sha256": "0" * 64}
    for field in catalogue.values():
        for operator in ("", *operators_of(field)):
            value = "true" if operator == "isnull" else (*field.values, formed.get(field.name, "1"))[0]
            name = f"{field.name}__{operator}" if operator else field.name
            assert field.path in str(parse_filter([(name, value)], catalogue, {}).query)


@pytest.mark.parametrize(
    ("typed", "stored"),
    [
        ("Crohn's", "Crohn\u2019s disease"),
        ("crohn\u00b4s", "Crohn\u2019s disease"),
        ("Crohn\u2019s", "Crohn's disease"),
        ('"claw" sign', "a \u201cclaw\u201d\nsign"),
        ("T1-T2", "T1\u2013T2"),
        ("Sjo\u0308gren", "Sj\u00f6gren"),
        ("a - b", "a \u2014 b"),
        ("a b", "a\u00a0\n b"),
        (" b", "a b"),
    ],
)
def test_text_is_found_in_any_typography(typed: str, stored: str) -> None:
    pattern = literal_pattern(composed(typed))
    assert re.search(pattern, stored, re.IGNORECASE)
    assert not re.search(pattern, "Crohn disease, a claw sign, T1 T2, Sjogren, a c", re.IGNORECASE)
    for operator, expected in (("__contains", pattern), ("__startswith", rf"\A{pattern}"), ("", rf"\A{pattern}\z")):
        query: Any = _query((f"caption{operator}", typed))
        assert query["norm.caption"] == {"$regex": expected, "$options": "i"}


VOCABULARY = {
    "figure_part": ["A", "a", "2a"],
    "plane": ["Axial", "Coronal"],
    "location": ["Chest, Pulmonary", "Nerve, central", "Abdomen"],
}


def _known(name: str, value: str) -> object:
    return parse_filter([(name, value)], IMAGE_FIELDS, IMAGE_ALIASES, VOCABULARY).query


def test_values_that_occur_are_compared_without_letter_case() -> None:
    assert _known("location", "chest,  pulmonary") == {"norm.location": "Chest, Pulmonary"}
    assert _known("location", "abdomen") == {"norm.location": "Abdomen"}
    assert _known("location", "Chest,Pulmonary") == {"norm.location": "Chest, Pulmonary"}
    # Both spellings occur.
    assert _known("figure_part", "a") == _known("figure_part", "A") == {"norm.figure_part": {"$in": ["A", "a"]}}
    assert _known("u_id", "mpx1007") == {"U_id": "MPX1007"}
    assert _known("image", "mpx1007_SYNPIC46719") == {"_id": "MPX1007_synpic46719"}


@pytest.mark.parametrize(
    ("value", "places"),
    [
        ("Axial,Coronal", None),
        ("abdomen,chest, pulmonary", ["Abdomen", "Chest, Pulmonary"]),
        ("Nerve, central", ["Nerve, central"]),
        ("Nerve, central,Chest, Pulmonary,Abdomen", ["Nerve, central", "Chest, Pulmonary", "Abdomen"]),
    ],
)
def test_a_comma_separates_where_every_part_is_a_value(value: str, places: list[str] | None) -> None:
    if places is None:
        assert _known("plane__in", value) == {"$or": [{"norm.plane": "Axial"}, {"norm.plane": "Coronal"}]}
    else:
        assert _known("location__in", value) == {"$or": [{"norm.location": place} for place in places]}


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("location", "Nowhere", "expected one of Chest, Pulmonary"),
        ("location", "Abdomn", "Did you mean Abdomen?"),
        ("plane", "Axial,Coronal", "use plane__in"),
        ("location__in", "Chest,Abdomen", "Separate values with |"),
        ("u_id", "MPX12", "such as MPX1007"),
        ("age", "1_0", "expected an integer"),
        ("age", "\u0661", "expected an integer"),
        ("age", " 1", "expected an integer"),
    ],
)
def test_what_no_image_has_is_refused(parameter: str, value: str, message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        _known(parameter, value)
    assert message in str(caught.value)


def test_the_time_of_a_list_grows_with_its_length_alone() -> None:
    parts = [f"{letter}{number}" for number in range(10) for letter in "abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {"figure_part": parts, "location": [f"{part}, {part}" for part in parts]}
    for name, value, count in (
        ("age__in", ",".join(["1"] * 249), 249),
        ("figure_part__in", ",".join(parts[:160]), 160),
        ("figure_part__in", "|".join(parts[:160]), 160),
        ("location__in", ",".join(vocabulary["location"][:60]), 60),
    ):
        started = time.thread_time()
        query = parse_filter([(name, value)] * 20, IMAGE_FIELDS, IMAGE_ALIASES, vocabulary).query
        assert time.thread_time() - started < 0.6, name
        assert len(query["$or"]) == 20 * count


def test_negations_are_the_complement() -> None:
    assert _known("sex__ne", "male") == {"$nor": [{"norm.sex": "male"}]}
    assert _known("sex__nin", "male,female") == {"$nor": [{"norm.sex": "male"}, {"norm.sex": "female"}]}
    both = parse_filter([("modalities__all", "CT,MR")], CASE_FIELDS, {}).query
    assert both == {"$and": [{"norm.modalities": "CT"}, {"norm.modalities": "MR"}]}


@pytest.mark.parametrize(("operator", "value"), [("gte", "nerve, central"), ("lte", "nerve,central")])
def test_a_range_over_a_closed_list_begins_with_the_stored_spelling(operator: str, value: str) -> None:
    stored = parse_filter([(f"location__{operator}", value)], IMAGE_FIELDS, {}, {"location": ["Nerve, central"]})
    assert stored.query == {"norm.location": {f"${operator}": "Nerve, central"}}
    with pytest.raises(ParameterError, match="expected one of Nerve, central"):
        parse_filter([(f"location__{operator}", "Nowhere")], IMAGE_FIELDS, {}, {"location": ["Nerve, central"]})


@pytest.mark.parametrize(
    ("parameter", "message"), [("age__gte", "give it once"), ("age__ne", "age__nin"), ("age", "age__in")]
)
def test_an_operator_that_is_given_twice_is_told_what_to_use(parameter: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        parse_filter([(parameter, "1"), (parameter, "2")], IMAGE_FIELDS, {})


def test_a_range_of_numbers_may_begin_with_the_one_that_stands_for_unknown() -> None:
    assert _query(("age__gte", "0"), ("age__lte", "17")) == {
        "$and": [{"norm.age": {"$gte": 0}}, {"norm.age": {"$lte": 17}}]
    }
