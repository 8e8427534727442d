import asyncio
import csv
import hashlib
import io
import json
import socket
import time
import zipfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import mlcroissant
import pandas as pd
import pytest
from datasets import load_dataset
from pymongo import MongoClient
from starlette.types import Message

from app.api.routes import export as export_route
from app.data.fields import Field
from app.export.tables import Csv

Document = dict[str, Any]


def _export(client: httpx.Client, **parameters: str) -> httpx.Response:
    answer = client.get("/export", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer


def _lines(text: str) -> list[Document]:
    return [json.loads(line) for line in text.splitlines()]


def _source(folder: Path, name: str) -> list[Document]:
    return _lines((folder / "splitted_dataset" / name).read_text(encoding="utf-8"))


def _by_id(records: list[Document], key: str) -> dict[str, Document]:
    by_id = {record[key]: record for record in records}
    assert len(by_id) == len(records)
    return by_id


@pytest.mark.parametrize("split", ["train", "dev", "test"])
@pytest.mark.parametrize(("of", "file", "key"), [("images", "descriptions", "image"), ("cases", "data", "U_id")])
def test_a_split_is_record_equal_to_its_file(
    api: httpx.Client, generated_dataset: Path, split: str, of: str, file: str, key: str
) -> None:
    expected = _by_id(_source(generated_dataset, f"{file}_{split}.jsonl"), key)
    answer = _export(api, format="jsonl", of=of, split=split, raw="true")
    assert answer.headers["content-disposition"] == f'attachment; filename="medpix-{of}.jsonl"'
    assert _by_id(_lines(answer.text), key) == expected
    assert _by_id(_export(api, format="json", of=of, split=split, raw="true").json(), key) == expected


@pytest.mark.medpix
@pytest.mark.parametrize("split", ["train", "dev", "test"])
@pytest.mark.parametrize(("of", "file", "key"), [("images", "descriptions", "image"), ("cases", "data", "U_id")])
def test_a_split_of_the_real_data_is_record_equal_to_its_file(
    medpix_api: httpx.Client, medpix_dir: Path, split: str, of: str, file: str, key: str
) -> None:
    expected = _by_id(_source(medpix_dir, f"{file}_{split}.jsonl"), key)
    assert _by_id(_lines(_export(medpix_api, format="jsonl", of=of, split=split, raw="true").text), key) == expected


def test_joined_records_hold_image_and_case(api: httpx.Client) -> None:
    records = _lines(_export(api, format="jsonl", of="records", modality="CT", raw="true").text)
    assert {record["Type"] for record in records} == {"CT"}
    for record in records:
        raw = api.get(f"/cases/{record['U_id']}", params={"raw": "true"}).json()
        assert (record["Case"], record["Topic"]) == (raw["Case"], raw["Topic"])


def test_values_can_be_normalised(api: httpx.Client) -> None:
    rows = _lines(_export(api, format="jsonl", raw="false", split="dev").text)
    items = api.get("/images", params={"split": "dev", "limit": "100"}).json()["items"]
    assert [row["image"] for row in rows] == [item["image"] for item in items]
    assert all(row[name] == item[name] for row, item in zip(rows, items, strict=True) for name in row if name in item)
    for row in rows:
        case = api.get(f"/cases/{row['u_id']}").json()
        assert (row["title"], row["diagnosis"]) == (case["title"], case["diagnosis"])


@pytest.mark.parametrize("sort", ["-age", "location,-image"])
def test_an_order_holds_as_in_the_list(api: httpx.Client, sort: str) -> None:
    rows = _lines(_export(api, format="jsonl", raw="false", modality="CT", sort=sort).text)
    listed = api.get("/images", params={"modality": "CT", "sort": sort, "limit": "100"}).json()["items"]
    assert [row["image"] for row in rows][:100] == [item["image"] for item in listed]
    assert len({row["image"] for row in rows}) == len(rows) >= len(listed) > 10
    cases = _lines(_export(api, format="jsonl", raw="false", of="cases", sort="-image_count").text)
    counts = [case["image_count"] for case in cases]
    assert counts == sorted(counts, reverse=True)


def test_an_order_that_cannot_be_is_refused(api: httpx.Client) -> None:
    answer = api.get("/export", params={"sort": "caption"})
    assert answer.status_code == 422
    assert "cannot sort by 'caption'" in answer.json()["detail"]


@pytest.mark.parametrize("of", ["images", "cases", "records"])
def test_csv_and_parquet_hold_the_same_table(api: httpx.Client, of: str, tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(_export(api, format="csv", of=of).text, newline="")))
    frame = pd.read_parquet(io.BytesIO(_export(api, format="parquet", of=of).content))
    assert list(rows[0]) == list(frame.columns)
    assert len(rows) == len(frame) == api.get("/images" if of != "cases" else "/cases").json()["total"]
    key = "u_id" if of == "cases" else "image"
    assert [row[key] for row in rows] == frame[key].tolist()
    ages = [int(row["age"]) if row["age"] else None for row in rows]
    assert ages == [None if pd.isna(age) else int(age) for age in frame["age"]]
    (tmp_path / "table.parquet").write_bytes(_export(api, format="parquet", of=of).content)
    loaded = load_dataset("parquet", data_files=str(tmp_path / "table.parquet"), cache_dir=str(tmp_path / "cache"))
    assert loaded["train"].num_rows == len(rows)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1.-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_is_taken_for_a_formula(text: str) -> None:
    field = Field("caption", "norm.caption", "text", "", "")
    [line] = csv.reader(io.StringIO(Csv({"caption": field}).add({"caption": text}).decode(), newline=""))
    assert line == [f"'{text}"]


def test_the_zip_opens_as_an_image_folder(api: httpx.Client, generated_dataset: Path, tmp_path: Path) -> None:
    answer = _export(api, format="zip", modality="MR")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "folder")
    loaded = load_dataset("imagefolder", data_dir=str(tmp_path / "folder"), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "validation", "test"}
    for name, split in (("train", "train"), ("validation", "dev"), ("test", "test")):
        items = api.get("/images", params={"split": split, "modality": "MR", "limit": "100"}).json()["items"]
        assert loaded[name].num_rows == len(items)
        assert sorted(loaded[name]["caption"]) == sorted(item["caption"] or "" for item in items)
        assert {picture.size for picture in loaded[name]["image"]} == {(i["width"], i["height"]) for i in items}
    first = next((tmp_path / "folder" / "train").glob("*.png"))
    assert first.read_bytes() == (generated_dataset / "images" / first.name).read_bytes()


def test_nothing_selected_is_an_empty_file(api: httpx.Client) -> None:
    nothing = {"u_id": "MPX9999"}
    assert _export(api, format="json", **nothing).json() == []
    assert _export(api, format="jsonl", **nothing).content == b""
    assert len(_export(api, format="csv", **nothing).text.splitlines()) == 1
    assert len(pd.read_parquet(io.BytesIO(_export(api, format="parquet", **nothing).content))) == 0
    with zipfile.ZipFile(io.BytesIO(_export(api, format="zip", **nothing).content)) as archive:
        assert archive.namelist() == []


@pytest.mark.parametrize(
    "query",
    ["format=xlsx", "format=zip&of=cases", "format=csv&raw=true", "of=topics", "colour=red", "title__regex=(&of=cases"],
)
def test_an_export_that_cannot_be_made_says_why(api: httpx.Client, query: str) -> None:
    answer = api.get(f"/export?{query}")
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of rdflib, which mlcroissant uses
def test_croissant_metadata_describe_the_tables(api: httpx.Client, tmp_path: Path) -> None:
    described = api.get("/export/croissant").json()
    (tmp_path / "croissant.json").write_text(json.dumps(described))
    files = {}
    for file in described["distribution"]:
        files[file["@id"]] = tmp_path / file["@id"]
        files[file["@id"]].write_bytes(api.get(file["contentUrl"]).content)
        assert hashlib.sha256(files[file["@id"]].read_bytes()).hexdigest() == file["sha256"]
    dataset = mlcroissant.Dataset(tmp_path / "croissant.json", mapping=files)
    assert not dataset.metadata.issues.errors
    rows = dataset.records("images")
    first = next(iter(rows))
    assert first["images/image"].decode() == _lines(_export(api, format="jsonl", raw="false").text)[0]["image"]


def test_aborted_exports_leave_no_cursor_open(api: httpx.Client, mongo_client: MongoClient[Document]) -> None:
    def opened() -> int:
        total: int = mongo_client.admin.command("serverStatus")["metrics"]["cursor"]["open"]["total"]
        return total

    before = opened()
    host, port = api.base_url.host, api.base_url.port
    assert port is not None
    request = f"GET /export?of=records&format=jsonl HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    for number in range(20):
        with socket.create_connection((host, port)) as connection:
            connection.sendall(request)
            if number % 2:  # half of them leave before the first byte, half after it
                connection.recv(1000)
    assert api.get("/health/live").status_code == 200
    deadline = time.monotonic() + 10
    while opened() > before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert opened() <= before


def test_an_export_ends_when_its_client_left_and_nothing_waits() -> None:
    made = 0

    async def parts() -> AsyncGenerator[bytes]:
        nonlocal made
        while made < 10_000:
            made += 1
            await asyncio.sleep(0)
            yield b"x"

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None:
        """As uvicorn's for a client that left: it does not wait."""

    response = export_route._ExportResponse(b"x", parts(), headers={}, media_type="text/plain")
    asyncio.run(response({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send))
    assert made < 100


def test_the_head_of_an_export_makes_no_file(api: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = api.get("/export?format=zip").headers
    monkeypatch.setattr(export_route, "export_parts", None)
    head = api.head("/export?format=zip")
    assert (head.status_code, head.content) == (200, b"")
    assert "content-length" not in head.headers  # 0 would say that the export is empty
    for name in ("content-type", "content-disposition", "x-dataset-version"):
        assert head.headers[name] == expected[name]
