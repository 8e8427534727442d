"""Exports by address, as data tools read them, and what keeps them right."""

import asyncio
import errno
import io
import json
import struct
import zipfile
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import duckdb
import fsspec
import httpx
import pandas as pd
import polars as pl
import pytest
from pymongo.database import Database

from app.core.disk_cache import DiskCache
from app.core.exceptions import ApiError
from app.core.settings import load_settings
from app.export import export_files
from app.export.export_files import ExportFiles
from tests.conftest import Document, database_address
from tests.service import running_service

TABLES = ("images", "cases", "records")
# Sockets that fsspec's and DuckDB's own threads leave to the collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def address(api: httpx.Client) -> str:
    return f"{str(api.base_url).rstrip('/')}/export"


def _items(api: httpx.Client, of: str, query: str = "") -> list[Document]:
    items: list[Document] = []
    page = f"/{'cases' if of == 'cases' else 'images'}?limit=100&{query}"
    while page:
        answer = api.get(page)
        items += answer.json()["items"]
        page = answer.links.get("next", {}).get("url", "")
    return items


@pytest.mark.parametrize("of", TABLES)
def test_polars_reads_every_format(api: httpx.Client, address: str, of: str) -> None:
    key = "u_id" if of == "cases" else "image"
    expected = [item[key] for item in _items(api, of)]
    assert pl.read_parquet(f"{address}/{of}.parquet")[key].to_list() == expected
    assert pl.read_csv(f"{address}/{of}.csv", infer_schema_length=None)[key].to_list() == expected
    assert pl.read_ndjson(httpx.get(f"{address}/{of}.jsonl").content)[key].to_list() == expected


def test_polars_scans_parquet_with_a_filter_in_the_address(api: httpx.Client, address: str) -> None:
    scanned = pl.scan_parquet(f"{address}/images.parquet").filter(pl.col("modality") == "CT").select("image", "age")
    expected = _items(api, "images", "modality=CT")
    assert scanned.collect().rows() == [(item["image"], item["age"]) for item in expected]
    narrowed = pl.read_parquet(f"{address}/images.parquet?modality=CT")
    assert narrowed["image"].to_list() == [item["image"] for item in expected]


def test_pandas_reads_every_format(api: httpx.Client, address: str) -> None:
    expected = _items(api, "images")
    for frame in (
        pd.read_csv(f"{address}/images.csv"),
        pd.read_csv(f"{address}/images.csv?bom=true"),
        pd.read_parquet(f"{address}/images.parquet"),
        pd.read_json(f"{address}/images.jsonl", lines=True),
    ):
        assert frame["image"].tolist() == [item["image"] for item in expected]
        ages = [None if pd.isna(age) else int(age) for age in frame["age"]]
        assert ages == [item["age"] for item in expected]
        assert {"title", "diagnosis"} <= set(frame.columns)


@pytest.mark.parametrize(
    ("builder", "suffix"),
    [("parquet", "parquet"), ("csv", "csv"), ("json", "jsonl"), ("parquet", "parquet?modality=CT")],
)
def test_datasets_streams_by_address(api: httpx.Client, address: str, builder: str, suffix: str) -> None:
    loaded = datasets.load_dataset(builder, data_files=f"{address}/images.{suffix}", streaming=True, split="train")
    expected = [item["image"] for item in _items(api, "images", suffix.partition("?")[2])]
    assert [row["image"] for row in loaded] == expected


@pytest.mark.parametrize("streaming", [True, False])
def test_datasets_reads_a_zip_as_an_image_folder(
    api: httpx.Client, address: str, tmp_path: Path, streaming: bool
) -> None:
    loaded = datasets.load_dataset(
        "imagefolder", data_files=f"{address}/images.zip", streaming=streaming, cache_dir=str(tmp_path), split="train"
    )
    items = {item["image"]: item for item in _items(api, "images")}
    rows = list(loaded)
    assert sorted(row["image_id"] for row in rows) == sorted(items)
    for row in rows[::40]:
        item = items[row["image_id"]]
        assert row["image"].size == (item["width"], item["height"])
        assert row["caption"] == (item["caption"] or "")
        assert row["title"] == api.get(f"/cases/{item['u_id']}").json()["title"]


def test_fsspec_reads_ranges(address: str, api: httpx.Client) -> None:
    whole = api.get("/export/images.parquet").content
    filesystem = fsspec.filesystem("http")
    assert filesystem.info(f"{address}/images.parquet")["size"] == len(whole)
    with filesystem.open(f"{address}/images.parquet", block_size=1000) as file:
        assert file.seek(-8, 2) == len(whole) - 8
        assert file.read() == whole[-8:]
        file.seek(100)
        assert file.read(50) == whole[100:150]
    with fsspec.open(f"zip://test/metadata.jsonl::{address}/images.zip?split=test") as lines:
        assert len(lines.read().splitlines()) == len(_items(api, "images", "split=test"))


def test_duckdb_reads_by_address(address: str, api: httpx.Client) -> None:
    with duckdb.connect() as connection:
        try:
            connection.execute("LOAD httpfs")
        except duckdb.Error as error:
            pytest.skip(f"DuckDB's httpfs extension has to be downloaded and is not here: {error}")
        rows = connection.execute(f"SELECT image FROM read_parquet('{address}/images.parquet')").fetchall()
    assert [image for (image,) in rows] == [item["image"] for item in _items(api, "images")]


def test_the_file_has_length_ranges_and_a_tag(api: httpx.Client) -> None:
    path = "/export/images.csv"
    whole = api.get(path)
    size, etag = len(whole.content), whole.headers["etag"]
    assert whole.headers["content-length"] == str(size)
    assert whole.headers["accept-ranges"] == "bytes"
    assert whole.headers["content-disposition"] == 'attachment; filename="medpix-images.csv"'
    assert whole.headers["x-dataset-version"] == api.get("/images?limit=1").headers["x-dataset-version"]
    assert not etag.startswith("W/")
    head = api.head(path)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(size))
    assert (head.headers["etag"], head.headers["accept-ranges"]) == (etag, "bytes")
    assert api.get(path, headers={"If-None-Match": etag}).status_code == 304
    part = api.get(path, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{size}"
    assert api.get(path, headers={"Range": "bytes=-7"}).content == whole.content[-7:]
    beyond = api.get(path, headers={"Range": f"bytes={size}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{size}")
    same = api.get(path, headers={"Range": "bytes=0-3", "If-Range": etag})
    assert (same.status_code, same.content) == (206, whole.content[:4])
    assert api.get(path, headers={"Range": "bytes=0-3", "If-Range": '"another"'}).content == whole.content
    assert whole.content == api.get("/export?format=csv").content


def test_the_tag_goes_with_the_content(api: httpx.Client) -> None:
    def tag(query: str) -> str:
        return str(api.head(f"/export/images.jsonl?{query}").headers["etag"])

    assert tag("sex=male&modality=CT") == tag("type=ct&sex=Male")  # one filter in two spellings
    different = ["", "modality=CT", "modality=MR", "raw=true", "sort=-age", "sample=3", "sample=3&seed=1", "q=brain"]
    assert len({tag(query) for query in different}) == len(different)


@pytest.mark.parametrize("of", TABLES)
def test_values_are_normalised_in_every_format_unless_raw_is_asked(api: httpx.Client, of: str) -> None:
    normalised = api.get(f"/export/{of}.json").json()
    assert [json.loads(line) for line in api.get(f"/export/{of}.jsonl").text.splitlines()] == normalised
    assert list(pd.read_csv(io.BytesIO(api.get(f"/export/{of}.csv").content)).columns) == list(normalised[0])
    assert list(pd.read_parquet(io.BytesIO(api.get(f"/export/{of}.parquet").content)).columns) == list(normalised[0])
    raw = api.get(f"/export/{of}.json?raw=true").json()
    assert len(raw) == len(normalised)
    assert set(raw[0]) != set(normalised[0])
    assert api.get(f"/export?of={of}&format=json&raw=true").json() == raw
    assert api.get(f"/export?of={of}").json() == normalised


@pytest.mark.parametrize(
    "path",
    [
        *("/export/images.xlsx", "/export/topics.csv", "/export/cases.zip", "/export/images.csv?raw=true"),
        *("/export/images.parquet?bom=true", "/export/images.csv?colour=red", "/export/images.csv?limit=3"),
    ],
)
def test_a_file_that_cannot_be_made_says_why(api: httpx.Client, path: str) -> None:
    answer = api.get(path)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"]


def test_a_byte_order_mark_is_there_on_request_alone(api: httpx.Client) -> None:
    assert api.get("/export/cases.csv?bom=true").content == b"\xef\xbb\xbf" + api.get("/export/cases.csv").content
    assert not api.get("/export/cases.csv").content.startswith(b"\xef\xbb\xbf")


def test_a_zip_can_be_read_while_it_arrives(api: httpx.Client) -> None:
    content = api.get("/export/images.zip?split=dev").content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        expected = {entry.filename: entry.CRC for entry in archive.infolist()}
    members, file = {}, io.BytesIO(content)
    while file.read(4) == b"PK\3\4":
        _, flags, _, _, _, crc, packed, _, name_length, extra_length = struct.unpack("<5H3I2H", file.read(26))
        assert not flags & 0x08  # no data descriptor: the sizes stand here
        name = file.read(name_length).decode()
        file.seek(extra_length, io.SEEK_CUR)
        assert len(file.read(packed)) == packed
        members[name] = crc
    assert members == expected
    assert len(expected) == len(_items(api, "images", "split=dev")) + 1


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache", 10_000)


async def _ten_bytes() -> AsyncGenerator[bytes]:
    for _ in range(10):
        yield b"."


async def _too_many() -> AsyncGenerator[bytes]:
    while True:
        yield b"." * 1000


async def _broken() -> AsyncGenerator[bytes]:
    yield b"first"
    raise ZeroDivisionError


def _written(cache: DiskCache) -> list[str]:
    # A glob, because a folder that the first build has not made yet holds no file either.
    return sorted(path.name for path in cache.folder.glob("exports/*"))


@pytest.mark.parametrize(("parts", "error"), [(_too_many, "larger than the cache"), (_broken, None)])
def test_an_aborted_build_leaves_nothing_and_can_be_repeated(cache: DiskCache, parts: Any, error: str | None) -> None:
    async def run() -> None:
        files = ExportFiles(cache)
        with pytest.raises((ApiError, ZeroDivisionError), match=error):
            await files.path("a.csv", parts)
        assert _written(cache) == []
        assert (await files.path("a.csv", _ten_bytes)).read_bytes() == b"." * 10
        await files.close()

    asyncio.run(run())


def test_a_stopping_service_leaves_no_half_file(cache: DiskCache) -> None:
    async def run() -> None:
        async def endless() -> AsyncGenerator[bytes]:
            while True:
                yield b"."
                await asyncio.sleep(0.01)

        files = ExportFiles(cache)
        waiting = asyncio.create_task(files.path("a.csv", endless))
        async with asyncio.timeout(10):
            while not _written(cache):  # noqa: ASYNC110 - a file has no event
                await asyncio.sleep(0.01)
        await files.close()
        await asyncio.gather(waiting, return_exceptions=True)
        assert _written(cache) == []

    asyncio.run(run())


def test_a_full_disk_is_named(cache: DiskCache, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(_self: ExportFiles, _file: BinaryIO, _make: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export_files.ExportFiles, "_fill", full)
    with pytest.raises(ApiError, match="No space left") as raised:
        asyncio.run(ExportFiles(cache).path("a.csv", _ten_bytes))
    assert raised.value.status == 507
    assert _written(cache) == []


@pytest.fixture
def small_cache(
    generated_database: Database[Document], generated_dataset: Path, mongo_server: str, tmp_path: Path
) -> Iterator[tuple[httpx.Client, Path]]:
    uri = database_address(mongo_server, generated_database.name)
    settings = load_settings(home=tmp_path, mongo_uri=uri, data_dir=generated_dataset, cache_max_mb=16)
    with running_service(settings) as client:
        yield client, settings.cache_dir / "exports"


def test_requests_at_the_same_time_make_a_file_once(
    small_cache: tuple[httpx.Client, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, folder = small_cache
    builds = []
    build = ExportFiles._build

    def counted(self: ExportFiles, path: Path, make: Any) -> Any:
        builds.append(path)
        return build(self, path, make)

    monkeypatch.setattr(ExportFiles, "_build", counted)
    with ThreadPoolExecutor(8) as threads:
        bodies = list(threads.map(lambda _: client.get("/export/records.parquet").content, range(8)))
    assert len(set(bodies)) == 1
    assert len(builds) == 1
    assert [path.name for path in folder.iterdir()] == [builds[0].name]
    (folder / builds[0].name).unlink()
    assert client.get("/export/records.parquet").content == bodies[0]  # made again, the same bytes


def test_a_file_over_the_budget_is_refused_and_streamed_instead(
    small_cache: tuple[httpx.Client, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, folder = small_cache
    monkeypatch.setattr(DiskCache, "max_bytes", property(lambda _: 1000, lambda *_: None), raising=False)
    answer = client.get("/export/images.zip?modality=CT")
    assert answer.status_code == 507
    assert answer.headers["content-type"] == "application/problem+json"
    assert "/export?of=images&format=zip" in answer.json()["detail"]
    assert list(folder.iterdir()) == []
    assert client.get("/export?of=images&format=zip&modality=CT").status_code == 200
