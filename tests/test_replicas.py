"""Three real API processes behind one proxy: what one of them learns all do, and the end of one is nobody's loss."""

import concurrent.futures
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
from pymongo.database import Database

from app.data.schema import MODELS
from app.data.seed import seed
from ml.registry.registry import Registry
from tests.cli.running import environment
from tests.conftest import REPOSITORY, Document, database_address
from tests.medpix_files import write_dataset
from tests.ports import free_port

_NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = pytest.mark.skipif(_NGINX is None, reason="nginx is not here; on Debian: apt-get install nginx-light")

_SOON_S = 15.0


@contextmanager
def process(*command: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    running = subprocess.Popen(command, env={**os.environ, **variables}, stderr=subprocess.DEVNULL)
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(5)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def until(condition: Callable[[], bool], what: str, seconds: float = _SOON_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.1)


def status_of(client: httpx.Client, path: str) -> int:
    try:
        return client.get(path).status_code
    except httpx.TransportError:
        return 0


def is_up(client: httpx.Client) -> bool:
    return status_of(client, "/cases/MPX1001") == 200


def names(client: httpx.Client) -> list[str]:
    return [item["card"]["name"] for item in client.get("/models").json()["items"]]


def nginx_conf(folder: Path, port: int, replicas: list[int]) -> Path:
    """The file of the compose profile, with addresses in the place of the name that Compose gives all replicas."""
    # As with addresses from the name server, no failure of a replica is remembered.
    servers = " ".join(f"server 127.0.0.1:{each} max_fails=0;" for each in replicas)
    text = (REPOSITORY / "docs" / "nginx.conf").read_text()
    for former, own in (
        ("listen 8080;", f"listen 127.0.0.1:{port};"),
        ("resolver 127.0.0.11 valid=2s ipv6=off;", ""),
        ("set $api api:8000;", "set $api replicas;"),
        ("http {", f"http {{ upstream replicas {{ {servers} }}"),
        ("/tmp/", f"{folder}/"),
    ):
        assert former in text
        text = text.replace(former, own)
    path = folder / "nginx.conf"
    path.write_text(text)
    return path


def test_replicas_learn_the_same_and_one_that_is_killed_loses_no_answer(
    tmp_path: Path,
    database: Database[Document],
    mongo_server: str,
    ml_database: Database[Document],
    models_dir: Path,
) -> None:
    data = write_dataset(tmp_path / "MedPix-2.0")
    seed(database, data)
    ports = [free_port() for _ in range(4)]
    proxy_port, api_ports = ports[0], ports[1:]
    with ExitStack() as stack:
        replicas = [
            stack.enter_context(
                process(
                    *(sys.executable, "-m", "app.main", "serve"),
                    **environment(
                        tmp_path / f"home{port}",
                        port,
                        MEDPIX_MONGO_URI=database_address(mongo_server, database.name),
                        MEDPIX_DATA_DIR=str(data),
                        MEDPIX_MODELS_DIR=str(tmp_path / "models"),
                        MEDPIX_DEVICE="cpu",
                    ),
                )
            )
            for port in api_ports
        ]
        config = str(nginx_conf(tmp_path, proxy_port, api_ports))
        stack.enter_context(process(str(_NGINX), "-e", "stderr", "-c", config, "-g", "daemon off;"))
        proxy, *direct = (
            stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)) for port in ports
        )
        for client in (*direct, proxy):
            until(partial(is_up, client), "the start", 60)

        def versions() -> set[str | None]:
            return {client.get("/cases/MPX1001").headers.get("X-Dataset-Version") for client in direct}

        (before,) = versions()
        image = next((data / "images").iterdir())
        image.write_bytes(image.read_bytes() + b"\n")
        seed(database, data)
        started = time.monotonic()
        until(lambda: len(versions()) == 1 and before not in versions(), "the new seeding at every replica", 5)
        print(f"new seeding at all replicas after {time.monotonic() - started:.1f} s")

        # Registered by another process, as `medpix train` does.
        trained = Registry(ml_database, models_dir).get("caption-location")
        shutil.copytree(models_dir / trained.name, tmp_path / "models" / trained.name)
        database[MODELS].insert_one(ml_database[MODELS].find_one({"_id": trained.name}) or {})
        started = time.monotonic()
        until(lambda: all(names(client) == [trained.name] for client in direct), "the new model at every replica")
        print(f"new model at all replicas after {time.monotonic() - started:.1f} s")

        answers = load_while(lambda: replicas[1].send_signal(signal.SIGKILL), proxy)
        assert replicas[1].wait(5) == -signal.SIGKILL
        assert {status for status, _ in answers} == {200}, [each for each in answers if each[0] != 200][:5]
        # A request that could not be sent is repeated, whatever its method.
        for _ in range(6):
            assert proxy.post("/predict/location", files={"image": b"x"}).status_code in (415, 503)
        print(f"{len(answers)} answers, slowest {max(seconds for _, seconds in answers):.2f} s")


def load_while(event: Callable[[], None], client: httpx.Client) -> list[tuple[int, float]]:
    """Status and seconds of GETs by eight clients for three seconds, with an event after the first one."""
    end = time.monotonic() + 3.0

    def ask(number: int) -> list[tuple[int, float]]:
        answers = []
        with httpx.Client(base_url=client.base_url, timeout=30) as own:
            while time.monotonic() < end:
                started = time.monotonic()
                path = ("/cases/MPX1001", "/images?limit=5", "/facets")[number % 3]
                answers.append((status_of(own, path), time.monotonic() - started))
        return answers

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(ask, number) for number in range(8)]
        time.sleep(1)
        event()
        return [each for job in jobs for each in job.result()]
