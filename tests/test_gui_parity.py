"""What the MedPix 2.0 authors' desktop program could do (G1 to G19), and the faults it had, on the real data."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from pymongo.database import Database

from app.data import schema
from app.data.seed import seed

pytestmark = pytest.mark.medpix

Document = dict[str, Any]


def _total(client: httpx.Client, path: str, **parameters: str) -> int:
    answer = client.get(path, params=parameters)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["total"])


def test_g01_three_sources(medpix_api: httpx.Client) -> None:
    assert (_total(medpix_api, "/images"), _total(medpix_api, "/cases")) == (2050, 671)
    joined = medpix_api.get("/images", params={"expand": "case", "limit": "1"}).json()["items"][0]
    assert joined["case"]["topic"]["title"]


def test_g02_fields_are_listed(medpix_api: httpx.Client) -> None:
    fields = medpix_api.get("/fields").json()
    assert len(fields["images"]) >= 15
    assert len(fields["cases"]) >= 20


def test_g03_nested_fields_are_filters(medpix_api: httpx.Client) -> None:
    assert _total(medpix_api, "/cases", **{"topic.category": "Trauma"}) == 54
    assert _total(medpix_api, "/cases", **{"topic.title__contains": "astrocytoma"}) > 0


def test_g04_patterns_on_several_fields_are_combined(medpix_api: httpx.Client) -> None:
    both = {"caption__regex": "ureter|kidney", "modality": "CT"}
    assert 0 < _total(medpix_api, "/images", **both) < _total(medpix_api, "/images", caption__regex="ureter|kidney")


def test_g05_values_to_choose_from(medpix_api: httpx.Client) -> None:
    values = {field["name"]: field["values"] for field in medpix_api.get("/fields").json()["images"]}
    assert values["modality"] == ["CT", "MR"]
    assert values["sex"] == ["female", "male"]
    assert len(values["location"]) == 21


def test_g06_an_empty_query_is_everything_and_no_hit_is_no_error(medpix_api: httpx.Client) -> None:
    assert _total(medpix_api, "/images") == 2050
    assert _total(medpix_api, "/images", u_id="MPX9999") == 0


def test_g07_every_match_can_be_reached(medpix_api: httpx.Client) -> None:
    address, seen = "/images?modality=CT&limit=100", set()
    while address:
        answer = medpix_api.get(address)
        seen |= {item["image"] for item in answer.json()["items"]}
        address = answer.links.get("next", {}).get("url", "")
    assert len(seen) == 1062


def test_g08_a_whole_result_is_saved_as_json(medpix_api: httpx.Client) -> None:
    answer = medpix_api.get("/export", params={"format": "json", "location_category": "Head"})
    assert "attachment" in answer.headers["content-disposition"]
    assert len(answer.json()) == 884


def test_g09_and_g10_an_image_is_opened_by_its_id(medpix_api: httpx.Client) -> None:
    image = medpix_api.get("/images", params={"limit": "1"}).json()["items"][0]
    opened = medpix_api.get(image["links"]["self"]).json()
    assert opened["image"] == image["image"]
    with Image.open(io.BytesIO(medpix_api.get(image["links"]["file"]).content)) as picture:
        assert picture.size == (image["width"], image["height"])


def test_g11_and_g12_an_image_comes_with_description_case_and_topic(medpix_api: httpx.Client) -> None:
    opened = medpix_api.get("/images/MPX1007_synpic46719").json()
    assert opened["caption"]
    assert opened["case"]["diagnosis"] == "Posterior Cerebral Artery Infarction"
    assert opened["case"]["topic"]["disease_discussion"]


def test_g13_next_and_back_within_a_result(medpix_api: httpx.Client) -> None:
    query = {"modality": "MR", "sex": "female", "limit": "1"}
    first = medpix_api.get("/images", params=query).json()
    second = medpix_api.get("/images", params=query | {"cursor": first["next_cursor"]}).json()
    assert first["items"][0]["image"] < second["items"][0]["image"]
    back = query | {"sort": "-image", "image__lte": second["items"][0]["image"], "limit": "2"}
    assert medpix_api.get("/images", params=back).json()["items"][1]["image"] == first["items"][0]["image"]


def test_g15_and_g16_the_records_of_one_image_are_saved(medpix_api: httpx.Client, medpix_dir: Path) -> None:
    image, case = "MPX1007_synpic46719", "MPX1007"
    descriptions = (medpix_dir / "splitted_dataset" / "descriptions_dev.jsonl").read_text().splitlines()
    [expected] = [record for record in map(json.loads, descriptions) if record["image"] == image]
    lines = medpix_api.get("/export", params={"format": "jsonl", "raw": "true", "image": image}).text.splitlines()
    assert [json.loads(line) for line in lines] == [expected]
    [record] = medpix_api.get("/export", params={"of": "cases", "format": "json", "raw": "true", "u_id": case}).json()
    assert set(record) == {"U_id", "TAC", "MRI", "Case", "Topic"}


@pytest.mark.parametrize("parameters", [{"modality": "CT", "split": "dev"}, {"modality": "MR", "split": "dev"}])
def test_g17_images_are_downloaded_by_modality(medpix_api: httpx.Client, parameters: Document) -> None:
    answer = medpix_api.get("/export", params={"format": "zip", **parameters})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        pictures = [name for name in archive.namelist() if name.endswith(".png")]
        assert archive.testzip() is None
    assert len(pictures) == {"CT": 84, "MR": 113}[parameters["modality"]]


def test_g19_and_fault_7_loading_twice_doubles_nothing(medpix_database: Database[Document], medpix_dir: Path) -> None:
    report = seed(medpix_database, medpix_dir)
    assert (report.cases.inserted, report.images.inserted, report.images.unchanged) == (0, 0, 2050)


def test_fault_1_one_set_of_names_and_the_view_exists(medpix_database: Database[Document]) -> None:
    names = set(medpix_database.list_collection_names())
    assert {"Image_Descriptions", "Clinical_reports", "Image_Reports"} <= names
    assert medpix_database[schema.IMAGE_REPORTS].count_documents({}) == 2050


def test_fault_2_images_are_found(medpix_api: httpx.Client) -> None:
    for item in medpix_api.get("/images", params={"limit": "20", "sort": "-image"}).json()["items"]:
        assert medpix_api.head(item["links"]["file"]).status_code == 200


def test_fault_3_equal_means_equal(medpix_api: httpx.Client) -> None:
    assert _total(medpix_api, "/images", sex="male") == 1098
    assert _total(medpix_api, "/images", age="1") == 87
    assert _total(medpix_api, "/images", acr_codes="1.3") == 310
    assert _total(medpix_api, "/images", sex__in="N/A") == 67
    assert medpix_api.get("/images", params={"caption__regex": "["}).status_code == 422
    assert _total(medpix_api, "/images", caption__contains="[") == 1


def test_fault_4_fields_that_the_first_case_lacks_are_filters(medpix_api: httpx.Client) -> None:
    for name, missing in (("discussion", 240), ("media", 670), ("topic.reference", 115)):
        assert _total(medpix_api, "/cases", **{f"{name}__isnull": "true"}) >= missing


def test_fault_5_fields_of_every_part_are_combined(medpix_api: httpx.Client) -> None:
    query = {"history__isnull": "false", "topic.category__contains": "trauma", "modality": "CT"}
    assert _total(medpix_api, "/cases", **query) > 0


def test_fault_6_a_saved_case_is_whole(medpix_api: httpx.Client) -> None:
    assert medpix_api.get("/cases/MPX2384", params={"raw": "true"}).json()["_id"] == "MPX2384"


def test_fault_8_the_images_are_those_of_the_dataset(medpix_api: httpx.Client) -> None:
    assert _total(medpix_api, "/images", source_url__isnull="true") == 261


def test_fault_9_an_answer_has_a_limit(medpix_api: httpx.Client) -> None:
    assert medpix_api.get("/images", params={"limit": "101"}).status_code == 422
    assert len(medpix_api.get("/images").json()["items"]) == 20
