"""Behind a proxy that serves the service below a path of its own and strips it; and pages of other origins."""

import http.client
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo.database import Database

from app.core.settings import Settings, load_settings
from tests.api.predict_client import is_problem
from tests.conftest import Document, database_address
from tests.service import running_service

PREFIX = "/hospital/medpix"
ORIGIN = "https://viewer.example.org"
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "date", "server"}


@contextmanager
def stripping_proxy(upstream: httpx.Client, *, says_so: bool) -> Iterator[httpx.Client]:
    """A proxy that answers below ``PREFIX`` alone; yields a client of it.

    Args:
        upstream: the service.
        says_so: send X-Forwarded-Prefix.
    """
    host, port = upstream.base_url.host, upstream.base_url.port

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if not self.path.startswith(PREFIX + "/"):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
            if says_so:
                headers["X-Forwarded-Prefix"] = PREFIX
            connection = http.client.HTTPConnection(host, port, timeout=30)
            connection.request(self.command, self.path.removeprefix(PREFIX), body or None, headers)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in {*_HOP_BY_HOP, "content-length"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_DELETE = do_GET  # noqa: N815  # the names of http.server

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.daemon_threads = False  # so that closing waits for them
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.server_port}", timeout=30) as client:
            yield client
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def usual(
    generated_database: Database[Document],
    generated_dataset: Path,
    mongo_server: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Settings:
    uri = database_address(mongo_server, generated_database.name)
    return load_settings(home=tmp_path_factory.mktemp("proxy"), mongo_uri=uri, data_dir=generated_dataset)


@pytest.fixture(scope="module", params=["X-Forwarded-Prefix", "MEDPIX_ROOT_PATH"])
def proxy(usual: Settings, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    is_set = request.param == "MEDPIX_ROOT_PATH"
    settings = usual.model_copy(update={"root_path": PREFIX if is_set else ""})
    with running_service(settings) as service, stripping_proxy(service, says_so=not is_set) as client:
        yield client


def _addresses(html: str) -> set[str]:
    return {link for link in re.findall(r'(?:href|src)="([^"#]*)', html) if link and "://" not in link}


@pytest.mark.parametrize(
    "page", ["/", "/pages/predict", "/pages/models", "/pages/about", "/docs", "/pages/case/MPX1001", "/pages/nothing"]
)
def test_all_that_a_page_needs_comes_through_the_proxy(proxy: httpx.Client, page: str) -> None:
    answer = proxy.get(PREFIX + page)
    assert answer.status_code == (404 if page == "/pages/nothing" else 200)
    assert f'data-prefix="{PREFIX}"' in answer.text
    addresses = _addresses(answer.text)
    assert len(addresses) > 5
    for address in addresses:
        assert address.startswith(PREFIX + "/"), address
        fetched = proxy.get(address, headers={"Accept": "text/html"})
        assert fetched.status_code == 200 or address.endswith("MPX1007"), address  # an example that is not in the data
        if address.endswith(".js"):  # modules import each other by relative addresses
            assert not re.findall(r'(?:from|import)\(? ?"/', fetched.text), address
            for literal in re.findall(
                r'(?<!at\()["`](/(?:images|cases|static|pages|search|facets|models)[^"`]*)', fetched.text
            ):
                assert "swagger" in address or f"text: `{literal}" in fetched.text, (address, literal)


def test_links_of_answers_and_headers_lead_through_the_proxy(proxy: httpx.Client) -> None:
    seen: set[str] = set()
    address = f"{PREFIX}/images?limit=50&sort=-age"
    while address:
        page = proxy.get(address)
        assert page.status_code == 200
        for item in page.json()["items"]:
            seen.add(item["image"])
            assert all(link.startswith(PREFIX + "/") for link in item["links"].values())
        address = page.links.get("next", {}).get("url", "")
    assert len(seen) == page.json()["total"]
    links = page.json()["items"][0]["links"]
    assert {proxy.get(link).status_code for link in links.values()} == {200}
    case = proxy.get(links["case"]).json()
    assert proxy.get(case["links"]["images"]).status_code == 200
    assert case["images"][0]["links"]["file"].startswith(PREFIX)
    hit = proxy.get(f"{PREFIX}/search?q=brain").json()["items"][0]
    assert proxy.get(hit["case"]["links"]["self"]).status_code == 200
    document = proxy.get(f"{PREFIX}/openapi.json").json()
    assert document["servers"][0]["url"] == PREFIX
    described = proxy.get(f"{PREFIX}/export/croissant").json()
    assert described["url"] == f"{str(proxy.base_url).rstrip('/')}{PREFIX}/"
    for file in described["distribution"]:
        assert proxy.get(file["contentUrl"]).status_code == 200


@pytest.mark.parametrize("path", ["/cases/", "/images/", "/pages/about/", "/docs/"])
def test_redirects_stay_below_the_prefix(proxy: httpx.Client, path: str) -> None:
    answer = proxy.get(PREFIX + path)
    assert answer.status_code == 307, answer.text
    target = httpx.URL(answer.headers["location"])
    assert target.path == PREFIX + path.rstrip("/")
    assert proxy.get(target).status_code == 200


def test_what_was_stored_is_found_below_the_prefix(proxy: httpx.Client) -> None:
    saved = proxy.post(f"{PREFIX}/views", json={"name": f"through {proxy.base_url.port}", "query": "modality=CT"})
    assert saved.status_code == 201, saved.text
    assert proxy.get(saved.headers["location"]).status_code == 200
    assert proxy.get(saved.json()["links"]["csv"]).status_code == 200
    image = proxy.get(f"{PREFIX}/images?limit=1").json()["items"][0]
    annotated = proxy.post(f"{image['links']['self']}/annotations", json={"comment": "seen"})
    assert annotated.status_code == 201, annotated.text
    assert proxy.get(annotated.headers["location"]).json()["id"] == annotated.json()["id"]
    assert proxy.delete(f"{PREFIX}/annotations/{annotated.json()['id']}").status_code == 201
    assert proxy.delete(saved.headers["location"]).status_code == 204


@pytest.fixture(scope="module")
def cors(usual: Settings) -> Iterator[httpx.Client]:
    with running_service(
        usual.model_copy(update={"cors_origins": [ORIGIN], "trusted_hosts": ["*.example.org"]})
    ) as client:
        yield client


def test_a_listed_origin_may_call_and_read_the_headers(cors: httpx.Client) -> None:
    asks = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "DELETE",
        "Access-Control-Request-Headers": "x-api-key,range",
    }
    for path in ("/predict/modality", "/views", "/images", "/export/images.parquet"):
        preflight = cors.options(path, headers=asks)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == ORIGIN
        assert "DELETE" in preflight.headers["access-control-allow-methods"]
        allowed = preflight.headers["access-control-allow-headers"].lower()
        assert {"x-api-key", "range"} <= {name.strip() for name in allowed.split(",")}
    answer = cors.get("/images?limit=1", headers={"Origin": ORIGIN})
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "Origin" in answer.headers["vary"]
    exposed = {name.strip() for name in answer.headers["access-control-expose-headers"].lower().split(",")}
    assert {"etag", "link", "x-dataset-version", "x-request-id", "content-range", "retry-after", "location"} <= exposed
    for failed in (
        cors.get("/cases/MPX9999", headers={"Origin": ORIGIN}),
        cors.get("/cases?x=1", headers={"Origin": ORIGIN}),
    ):
        assert failed.headers["access-control-allow-origin"] == ORIGIN  # so that a page can say what is wrong


def test_any_other_origin_may_not(cors: httpx.Client, api: httpx.Client) -> None:
    for client, origin in ((cors, "https://evil.example.com"), (cors, "null"), (api, ORIGIN)):
        assert "access-control-allow-origin" not in client.get("/images?limit=1", headers={"Origin": origin}).headers
        asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        preflight = client.options("/predict/modality", headers=asks)
        assert preflight.status_code >= 400
        assert "access-control-allow-origin" not in preflight.headers


@pytest.mark.parametrize("host", ["medpix.example.org", "medpix.example.org:8443", "MEDPIX.Example.ORG.", "[::1]:8000"])
def test_a_trusted_host_is_answered(cors: httpx.Client, host: str) -> None:
    assert cors.get("/images?limit=1", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["example.org", "evil-example.org", "medpix.example.org.evil.com", "evil.com", "a.evil.com:80"]
)
def test_a_name_that_was_rebound_is_refused_before_anything_is_written(cors: httpx.Client, host: str) -> None:
    image = cors.get("/images?limit=1").json()["items"][0]["image"]
    before = cors.get("/annotations").json()["total"]
    is_problem(cors.post(f"/images/{image}/annotations", json={"comment": "x"}, headers={"Host": host}), 421)
    is_problem(cors.get("/images", headers={"Host": host}), 421)
    assert cors.get("/annotations").json()["total"] == before
