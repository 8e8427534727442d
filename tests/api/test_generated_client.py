"""openapi-python-client makes a client from the served document, without a warning, and the client works."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from ml.dataset.records import Record
from tests.api.predict_client import CAPTION

VERSION = "0.29.1"
# The generator knows images as files only when it is told; nothing is formatted afterwards.
CONFIG = """
post_hooks: []
content_type_overrides:
  image/png: application/octet-stream
  image/jpeg: application/octet-stream
"""

PROGRAM = """
import json, sys
from io import BytesIO
from med_pix_service_client import Client
from med_pix_service_client.api.cases import get_case, get_cases, list_cases
from med_pix_service_client.api.images import get_image_file, list_images
from med_pix_service_client.api.predict import predict_location, predict_modality
from med_pix_service_client.api.search import search
from med_pix_service_client.models import (
    CaseIds, PredictLocationBody, PredictModalityBody, ListImagesModality, Problem,
)
from med_pix_service_client.types import File

address, picture, caption = sys.argv[1:]
client = Client(base_url=address)
images = list_images.sync(client=client, modality=ListImagesModality.CT, age_gte=60, limit=5)
case = get_case.sync(images.items[0].u_id, client=client)
bulk = get_cases.sync(client=client, body=CaseIds(ids=[case.u_id, "MPX9999"]))
missing = get_case.sync("MPX9999", client=client)
content = get_image_file.sync(images.items[0].image, client=client)
upload = lambda: File(payload=BytesIO(open(picture, "rb").read()), file_name="image.png", mime_type="image/png")
modality = predict_modality.sync(client=client, body=PredictModalityBody(image=upload()))
location = predict_location.sync(client=client, body=PredictLocationBody(image=upload(), caption=caption))
assert not isinstance(modality, Problem), modality
assert not isinstance(location, Problem), location
print(json.dumps({
    "total": images.total,
    "modalities": sorted({str(item.modality) for item in images.items}),
    "case": case.u_id,
    "images": [image.image for image in case.images],
    "bulk": [[item.u_id for item in bulk.items], bulk.unknown],
    "missing": isinstance(missing, Problem) and missing.detail,
    "found": [hit.case.u_id for hit in search.sync(client=client, q="brain").items],
    "bytes": len(content.payload.read()),
    "modality": modality.label,
    "location": [location.label, location.inputs_used],
}))
"""


def _tool() -> list[str]:
    """Runs a program in the generator's own environment, which uv makes where it is not there yet."""
    uvx = shutil.which("uvx") or shutil.which("uvx", path=str(Path(sys.prefix) / "tools" / "bin"))
    if uvx is None:
        pytest.skip("uv is not installed")
    tool = [uvx, "--from", f"openapi-python-client=={VERSION}"]
    ready = subprocess.run([*tool, "openapi-python-client", "--version"], capture_output=True, text=True, check=False)
    if ready.returncode != 0:
        pytest.skip(f"openapi-python-client cannot be installed: {ready.stderr[-300:]}")
    return tool


def test_a_generated_client_filters_reads_and_predicts(
    predict_api: httpx.Client, records: list[Record], tmp_path: Path
) -> None:
    tool = _tool()
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "openapi.json").write_bytes(predict_api.get("/openapi.json").content)
    options = ("--path", "openapi.json", "--output-path", "client", "--config", "config.yaml", "--fail-on-warning")
    command = [*tool, "openapi-python-client", "generate", *options]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    assert "arning" not in made.stdout + made.stderr
    (tmp_path / "program.py").write_text(PROGRAM)
    record = next(record for record in records if record.split == "test")
    # In the generator's own environment, which has what a generated client imports.
    ran = subprocess.run(
        [*tool, "python", "program.py", str(predict_api.base_url), str(record.path), CAPTION],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "client")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    expected = predict_api.get("/images?modality=CT&age__gte=60&limit=5").json()
    case = predict_api.get(f"/cases/{expected['items'][0]['u_id']}").json()
    assert (answer["total"], answer["modalities"]) == (expected["total"], ["CT"])
    assert (answer["case"], answer["images"]) == (case["u_id"], [image["image"] for image in case["images"]])
    assert answer["bulk"] == [[case["u_id"]], ["MPX9999"]]
    assert answer["missing"] == "There is no case MPX9999."
    assert answer["found"] == [hit["case"]["u_id"] for hit in predict_api.get("/search?q=brain").json()["items"]]
    assert answer["bytes"] == len(predict_api.get(expected["items"][0]["links"]["file"]).content)
    files = {"image": record.path.read_bytes()}
    assert answer["modality"] == predict_api.post("/predict/modality", files=files).json()["label"]
    located = predict_api.post("/predict/location", files=files, data={"caption": CAPTION}).json()
    assert answer["location"] == [located["label"], located["inputs_used"]]


def test_every_error_in_the_reference_has_an_example_of_its_own(api: httpx.Client) -> None:
    document = api.get("/openapi.json").json()
    seen: dict[str, str] = {}
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                problem = answer.get("content", {}).get("application/problem+json")
                if problem is None or status == "500":
                    continue
                example = problem["example"]
                assert example["status"] == int(status)
                assert {"type", "title", "detail", "instance", "request_id"} <= set(example)
                seen[status] = example["detail"]
    assert {"404", "409", "413", "415", "416", "422", "429", "503", "504", "507"} <= set(seen)
    assert len(set(seen.values())) == len(seen)
    real = api.get("/cases/MPX9999").json()
    assert seen["404"] == real["detail"]


def test_the_operators_of_filters_are_in_the_reference(api: httpx.Client) -> None:
    document = api.get("/openapi.json").json()
    parameters = {each["name"]: each for each in document["paths"]["/images"]["get"]["parameters"]}
    listed = {each["name"]: each for each in api.get("/fields").json()["images"]}
    operators = {operator for field in listed.values() for operator in field["operators"]}
    assert operators <= set(parameters)
    for name in (
        "modality__ne",
        "modality__nin",
        "quality_flags__all",
        "caption__startswith",
        "sample",
        "seed",
        "sample_by",
        "q",
    ):
        assert parameters[name]["description"]
        assert parameters[name]["schema"]
    identifiers = [each["operationId"] for path in document["paths"].values() for each in path.values()]
    assert len(set(identifiers)) == len(identifiers)
    assert all(len(name) <= 25 for name in identifiers)


@pytest.mark.parametrize(
    ("narrow", "wide", "excluded"),
    [
        ("modality__ne=CT", "modality=MR", "CT"),
        ("modality__nin=CT", "modality=MR", "CT"),
        (
            "location_category__nin=Head|Thorax",
            "location_category__in=Abdomen|Spine and Muscles|Reproductive and Urinary System",
            None,
        ),
    ],
)
def test_negative_operators_select_the_rest(api: httpx.Client, narrow: str, wide: str, excluded: str | None) -> None:
    first, second = (api.get(f"/images?{query}&limit=100").json() for query in (narrow, wide))
    assert first["items"] == second["items"]
    assert first["total"] == second["total"] > 0
    assert excluded not in {item["modality"] for item in first["items"]}


def test_all_and_startswith_select_what_they_say(api: httpx.Client) -> None:
    both = api.get("/cases?modalities__all=CT|MR&limit=100").json()["items"]
    assert both
    assert all(set(case["modalities"]) == {"CT", "MR"} for case in both)
    everything = api.get("/cases?limit=100").json()["items"]
    assert [case["u_id"] for case in both] == [c["u_id"] for c in everything if set(c["modalities"]) == {"CT", "MR"}]
    title = everything[0]["title"]
    started = api.get("/cases", params={"title__startswith": title[:4].upper(), "limit": "100"}).json()["items"]
    expected = [case["u_id"] for case in everything if case["title"].casefold().startswith(title[:4].casefold())]
    assert [case["u_id"] for case in started] == expected
