"""Three real mongod processes: the primary is killed under load, and nothing that was acknowledged is lost."""

import gc
import itertools
import subprocess
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo import MongoClient

from app.core.settings import load_settings
from app.data.client import connect
from app.data.mongod import find_mongod
from app.data.schema import ANNOTATIONS
from app.data.seed import seed
from tests.ports import free_port
from tests.service import is_ok, running_service, wait_for

Document = dict[str, Any]
Members = dict[int, subprocess.Popen[bytes]]


@pytest.fixture
def members(tmp_path: Path) -> Iterator[Members]:
    """Port to process of a replica set of three."""
    members: Members = {}
    for number in range(3):
        folder = tmp_path / f"member{number}"
        folder.mkdir()
        port = free_port()
        options = ["--replSet", "rs", "--nounixsocket", "--wiredTigerCacheSizeGB", "0.25", "--oplogSize", "50"]
        command = [str(find_mongod()), "--dbpath", str(folder), "--port", str(port), "--bind_ip", "127.0.0.1", *options]
        with (tmp_path / f"member{number}.log").open("w") as log:
            members[port] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        _initiate(list(members))
        yield members
    finally:
        for process in members.values():
            process.kill()
            process.wait()


def _initiate(ports: list[int]) -> None:
    hosts = [{"_id": number, "host": f"127.0.0.1:{port}"} for number, port in enumerate(ports)]
    # A shorter time to an election than the usual ten seconds, so that the test is short too.
    config = {"_id": "rs", "members": hosts, "settings": {"electionTimeoutMillis": 2000}}
    for port in ports:  # on a busy machine one of them may still be starting, and the set then refuses to form
        with MongoClient[Document](f"mongodb://127.0.0.1:{port}/?directConnection=true") as client:
            client.admin.command("ping")
    with MongoClient[Document](f"mongodb://127.0.0.1:{ports[0]}/?directConnection=true") as client:
        client.admin.command("replSetInitiate", config)
        deadline = time.monotonic() + 60
        while not client.admin.command("hello")["isWritablePrimary"] and time.monotonic() < deadline:
            time.sleep(0.2)


def _primary(uri: str) -> int:
    with MongoClient[Document](uri) as client:
        client.admin.command("ping")
        address = client.primary
        assert address is not None
        return address[1]


class Load:
    """Readers and writers who do not stop for errors, and remember every answer."""

    def __init__(self, address: str, images: list[str]) -> None:
        self.answers: list[tuple[float, str, int]] = []
        self.acknowledged: list[str] = []
        self._address, self._images = address, images
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._read) for _ in range(3)]
        self._threads += [threading.Thread(target=self._write) for _ in range(2)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _read(self) -> None:
        with httpx.Client(base_url=self._address, timeout=60) as client:
            while not self._stop.is_set():
                answer = client.get(f"/images/{self._images[0]}")
                self.answers.append((time.monotonic(), "read", answer.status_code))
                time.sleep(0.01)

    def _write(self) -> None:
        with httpx.Client(base_url=self._address, timeout=60) as client:
            number = 0
            while not self._stop.is_set():
                image = self._images[number % len(self._images)]
                answer = client.post(f"/images/{image}/annotations", json={"comment": f"note {number}"})
                self.answers.append((time.monotonic(), "write", answer.status_code))
                if answer.status_code == 201:
                    self.acknowledged.append(answer.json()["id"])
                number += 1
                time.sleep(0.01)


def test_the_primary_is_killed_under_load(members: Members, generated_dataset: Path, tmp_path: Path) -> None:
    hosts = ",".join(f"127.0.0.1:{port}" for port in members)
    uri = f"mongodb://{hosts}/medpix?replicaSet=rs&readPreference=primaryPreferred"
    settings = load_settings(home=tmp_path / "home", mongo_uri=uri, data_dir=generated_dataset)
    with connect(uri, settings, timeout_s=0) as client:
        seed(client.get_default_database(), generated_dataset)
    with running_service(settings) as api:
        wait_for(api, "/health/ready", is_ok)
        images = [item["image"] for item in api.get("/images", params={"limit": 20}).json()["items"]]
        with Load(str(api.base_url), images) as load:
            time.sleep(2)
            killed = members[_primary(uri)]
            killed.kill()
            killed.wait()
            killed_at = time.monotonic()
            time.sleep(12)
        after = [answer for answer in load.answers if answer[0] > killed_at]
        last_failure = max((at for at, _, status in after if status not in (200, 201)), default=killed_at)
        written = sorted(at for at, kind, status in load.answers if (kind, status) == ("write", 201))
        gap_s = max(later - sooner for sooner, later in itertools.pairwise(written))
        counts = Counter((kind, status) for _, kind, status in load.answers)
        assert set(counts) <= {("read", 200), ("read", 503), ("write", 201), ("write", 503), ("write", 504)}, counts
        recovered = Counter((kind, status) for at, kind, status in after if at > last_failure)
        assert recovered["read", 200] > 20
        assert recovered["write", 201] > 20, f"writes did not recover: {counts}"
        assert wait_for(api, "/health/ready", is_ok).status_code == 200
    with connect(uri, settings) as client:
        kept = {row["_id"] for row in client.get_default_database()[ANNOTATIONS].find({}, {"_id": 1})}
    assert set(load.acknowledged) <= kept
    print(f"no write was acknowledged for {gap_s:.1f} s; answers: {dict(counts)}")
    with warnings.catch_warnings():
        # PyMongo leaves the socket of a member that is gone to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
