import httpx
import pytest

from app.api.routes.facets import Facets, FieldList, Statistics
from app.data.facets import AGE_BAND, TOPIC_CATEGORY
from app.data.image_counts import FACETS


def _facets(client: httpx.Client, **parameters: str) -> Facets:
    answer = client.get("/facets", params=parameters)
    assert answer.status_code == 200, answer.text
    return Facets.model_validate_json(answer.content)


@pytest.mark.parametrize(
    "parameters", [{}, {"modality": "CT"}, {"sex__isnull": "true"}, {"age__gte": "40", "split": "dev"}]
)
def test_each_facet_sums_to_the_total(api: httpx.Client, parameters: dict[str, str]) -> None:
    facets = _facets(api, **parameters)
    assert facets.total == api.get("/images", params=parameters).json()["total"]
    assert set(facets.facets) == {*FACETS, AGE_BAND, TOPIC_CATEGORY}
    for values in facets.facets.values():
        assert sum(value.count for value in values) == facets.total


def test_the_filter_of_a_value_selects_its_images(api: httpx.Client) -> None:
    for values in _facets(api, split="train").facets.values():
        for value in values:
            if value.filter is not None:
                selected = api.get("/images", params={"split": "train", **value.filter}).json()
                assert selected["total"] == value.count, value


def test_a_filter_without_images_counts_nothing(api: httpx.Client) -> None:
    facets = _facets(api, u_id="MPX9999")
    assert (facets.total, facets.cases) == (0, 0)
    assert not any(facets.facets.values())


def test_fields_say_what_a_form_needs(api: httpx.Client) -> None:
    fields = FieldList.model_validate_json(api.get("/fields").content)
    by_name = {field.name: field for field in fields.images}
    assert by_name["modality"].values == ["CT", "MR"]
    assert by_name["caption"].values is None
    assert by_name["age"].operators == [
        "age",
        *(f"age__{each}" for each in ("ne", "in", "nin", "gte", "lte", "isnull")),
    ]
    case_names = {field.name for field in fields.cases}
    # Fields that the first documents do not have are there too.
    for name in ("discussion", "treatment_follow_up", "media", "topic.keywords", "topic.reference"):
        assert name in case_names


@pytest.mark.parametrize("of", ["images", "cases"])
def test_every_operator_of_every_field_is_taken(api: httpx.Client, of: str) -> None:
    values = {"isnull": "false", "regex": "a", "contains": "a", "startswith": "a"}
    formed = {"image": "MPX1007_synpic46719", "u_id": "mpx1007", "sha256": "0" * 64}
    for field in api.get("/fields").json()[of]:
        for parameter in field["operators"]:
            operator = parameter.partition("__")[2]
            possible = field["values"] or [formed.get(field["name"], "1")]
            closed = None if operator in values else possible[0]
            answer = api.get(
                f"/{of}", params={parameter: closed if closed is not None else values[operator], "limit": 1}
            )
            assert answer.status_code == 200, (parameter, answer.text)


@pytest.mark.parametrize("of", ["images", "cases"])
def test_statistics_agree_with_the_filters(api: httpx.Client, of: str) -> None:
    answer = api.get("/statistics", params={"of": of, "split": "train"})
    statistics = Statistics.model_validate_json(answer.content)
    assert statistics.total == api.get(f"/{of}", params={"split": "train"}).json()["total"]
    for name, field in statistics.fields.items():
        nulls = api.get(f"/{of}", params={"split": "train", f"{name}__isnull": "true"}).json()["total"]
        assert field.nulls == nulls, name
        described = field.model_dump()
        if field.kind == "keyword" and described["distinct"] <= 100:
            assert sum(value["count"] for value in described["values"]) == statistics.total - nulls
        if field.kind == "integer":
            assert sum(part["count"] for part in described["histogram"]) == statistics.total - nulls


def test_only_the_asked_fields_are_answered(api: httpx.Client) -> None:
    item = api.get("/cases", params={"fields": "title,topic.category,topic.title", "limit": 1}).json()["items"][0]
    assert set(item) == {"u_id", "title", "topic"}
    assert set(item["topic"]) == {"category", "title"}
    item = api.get("/cases", params={"fields": "topic,topic.title", "limit": 1}).json()["items"][0]
    assert "disease_discussion" in item["topic"]
    answer = api.get("/cases", params={"fields": "title,colour"})
    assert answer.status_code == 422
    assert "topic.category" in answer.json()["detail"]
    assert api.get("/cases", params={"fields": ""}).status_code == 422


def test_images_come_with_their_cases_when_asked(api: httpx.Client) -> None:
    items = api.get("/images", params={"expand": "case", "limit": 30}).json()["items"]
    assert all(item["case"]["u_id"] == item["u_id"] for item in items)
    assert api.get("/images", params={"expand": "topic"}).status_code == 422


@pytest.mark.parametrize(
    "path", ["/cases/MPX1008", "/images?limit=3", "/facets", "/fields", "/search?q=left", "/statistics"]
)
def test_a_client_that_has_the_answer_is_not_sent_it_again(api: httpx.Client, path: str) -> None:
    first = api.get(path)
    assert first.headers["x-dataset-version"]
    again = api.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert api.get(path, headers={"If-None-Match": '"other"'}).content == first.content


@pytest.mark.medpix
def test_counts_of_the_real_data(medpix_api: httpx.Client) -> None:
    facets = _facets(medpix_api)
    counts = {name: {value.value: value.count for value in values} for name, values in facets.facets.items()}
    assert (facets.total, facets.cases) == (2050, 671)
    assert counts["modality"] == {"CT": 1062, "MR": 988}
    assert counts["sex"] == {"male": 1098, "female": 885, None: 67}
    assert counts["location_category"]["Head"] == 884
    assert counts["location"]["Brain and Neuro"] == 631
    assert counts["location"][None] == 1
    assert counts["plane"][None] == 1
