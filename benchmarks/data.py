"""The data endpoints against python-eve under gunicorn, and against an empty FastAPI route.

    python -m benchmarks.data --data ../shared/MedPix-2.0

Each server runs alone, one process on the same core while wrk loads it from another; all read the
same collections of one mongod. Every case is asked for in turn, and the list by every value of three
fields. 304 is a case that the client has already. Needs wrk, and benchmarks/requirements.lock here or
in the environment of the interpreter that --peers names.
"""

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

from app.core.settings import load_settings
from app.data.client import connect
from app.data.dataset import find_dataset
from app.data.mongod import embedded_mongod, find_mongod
from app.data.schema import CASES, DATABASE, IMAGES
from app.data.seed import seed
from app.data.serializers import ANSWER

SECONDS = 6
FIELDS = ("modality", "location", "location_category")
CONNECTIONS = 16

EMPTY = """
from fastapi import FastAPI
app = FastAPI()

@app.get("/empty")
async def empty():
    return {"status": "ok"}
"""

EVE = """
import os
from eve import Eve
resources = {
    "cases": {"datasource": {"source": "CASES"}, "item_lookup_field": "_id", "item_url": 'regex("MPX[0-9]{4}")',
              "schema": {"_id": {"type": "string"}}, "allow_unknown": True},
    "images": {"datasource": {"source": "IMAGES"}, "item_lookup_field": "_id", "item_url": 'regex("MPX.*")',
               "schema": {"_id": {"type": "string"}}, "allow_unknown": True},
}
app = Eve(settings={"MONGO_URI": os.environ["MONGO_URI"], "DOMAIN": resources, "PAGINATION_LIMIT": 100,
                    "X_DOMAINS": None, "RENDERERS": ["eve.render.JSONRenderer"], "IF_MATCH": False})
""".replace("CASES", CASES).replace("IMAGES", IMAGES)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], port: int, folder: Path, path: str, **environment: str) -> Iterator[str]:
    """A server process on the first core; yields its address once it answers."""
    log = (folder / "server.log").open("w")
    process = subprocess.Popen(
        ["taskset", "-c", "0", *command], cwd=folder, env={**os.environ, **environment}, stdout=log, stderr=log
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(address + path, timeout=5).read()
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise RuntimeError(f"{command} did not start:\n{(folder / 'server.log').read_text()[-2000:]}")
        yield address
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def wait_until_idle(address: str) -> None:
    """The service builds the index of its search, and looks for models, after it has begun to answer."""
    for _ in range(600):
        try:
            urllib.request.urlopen(address + "/search?q=stone", timeout=60).read()
            break
        except urllib.error.HTTPError:
            time.sleep(0.5)
    time.sleep(3)


TAKE_TURNS = """
local paths, turn, headers = {}, 0, {["If-None-Match"] = CONDITION}
for path in io.lines("PATHS") do paths[#paths + 1] = path end
request = function()
  turn = turn % #paths + 1
  return wrk.format("GET", paths[turn], headers)
end
"""


def rate(address: str, paths: list[str], folder: Path, condition: str | None = None) -> float:
    """Requests per second that were answered with 200 or 304, at 16 connections that take the paths in turn."""
    (folder / "paths.txt").write_text("".join(path + "\n" for path in paths))
    script = TAKE_TURNS.replace("PATHS", str(folder / "paths.txt"))
    (folder / "turns.lua").write_text(script.replace("CONDITION", json.dumps(condition) if condition else "nil"))
    load = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "-s", str(folder / "turns.lua"), address]
    command = ["taskset", "-c", "1", *load]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in text:
        raise RuntimeError(f"{address}{paths[0]} failed:\n{text}")
    found = re.search(r"Requests/sec:\s+([\d.]+)", text)
    assert found is not None
    return float(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default=sys.executable, help="Python whose environment has eve and gunicorn")
    arguments = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("wrk is needed; Debian has it as a package of this name")
    with TemporaryDirectory() as home:
        folder = Path(home)
        (folder / "empty_app.py").write_text(EMPTY)
        (folder / "eve_app.py").write_text(EVE)
        server = embedded_mongod(folder / "db", folder / "run", find_mongod())
        with server as uri:
            with connect(uri, load_settings(), timeout_s=0) as client:
                seed(client[DATABASE], find_dataset(arguments.data))
                cases = [f"/cases/{key}" for key in client[DATABASE][CASES].distinct("_id")]
                lists = {field: client[DATABASE][IMAGES].distinct(f"norm.{field}") for field in FIELDS}
                for name in (CASES, IMAGES):  # eve reads the records without the answers that ours stores beside them
                    client["eve"][name].insert_many(client[DATABASE][name].find({}, {ANSWER: 0}))
                for field in FIELDS:
                    client["eve"][IMAGES].create_index([(f"norm.{field}", 1), ("_id", 1)])
            eve_uri = uri.replace(f"/{DATABASE}?", "/eve?")
            data = str(arguments.data.resolve())
            measure(uri, eve_uri, folder, arguments.rounds, data, cases, lists, arguments.peers)


def measure(
    uri: str,
    eve_uri: str,
    folder: Path,
    rounds: int,
    data: str,
    cases: list[str],
    lists: dict[str, list[str | None]],
    peers: str,
) -> None:
    gunicorn = [peers, "-m", "gunicorn", "-w", "1", "--threads", str(CONNECTIONS), "--log-level", "error"]
    pairs = [(field, value) for field, values in lists.items() for value in values if value is not None]
    ours = {"case": cases, "list": [f"/images?{field}={quote(value)}&limit=50" for field, value in pairs]}
    conditions = [quote(json.dumps({f"norm.{field}": value})) for field, value in pairs]
    theirs = {"case": cases, "list": [f"/images?where={condition}&max_results=50&sort=_id" for condition in conditions]}
    rates: dict[str, list[float]] = {}
    for _ in range(rounds):
        port = free_port()
        command = [sys.executable, "-m", "uvicorn", "empty_app:app", "--port", str(port), "--no-access-log"]
        with running(command, port, folder, "/empty") as address:
            rates.setdefault("empty", []).append(rate(address, ["/empty"], folder))
        port = free_port()
        command = [sys.executable, "-m", "app.main", "serve"]
        settings = {"MEDPIX_MONGO_URI": uri, "MEDPIX_PORT": str(port), "MEDPIX_HOME": str(folder / "home")}
        source = {"PYTHONPATH": str(Path(__file__).parents[1]), "MEDPIX_DATA_DIR": data}
        quiet = {"MEDPIX_LOG_LEVEL": "warning"}
        with running(command, port, folder, "/health/live", **settings, **source, **quiet) as address:
            wait_until_idle(address)
            for name, paths in ours.items():
                rates.setdefault(f"ours {name}", []).append(rate(address, paths, folder))
            with urllib.request.urlopen(address + cases[0]) as answer:
                etag = answer.headers["ETag"]
            rates.setdefault("ours 304", []).append(rate(address, cases[:1], folder, etag))
        port = free_port()
        command = [*gunicorn, "-b", f"127.0.0.1:{port}", "eve_app:app"]
        with running(command, port, folder, cases[0], MONGO_URI=eve_uri) as address:
            for name, paths in theirs.items():
                rates.setdefault(f"eve {name}", []).append(rate(address, paths, folder))
    middle = {name: statistics.median(values) for name, values in rates.items()}
    print(f"requests per second, {CONNECTIONS} connections, one core each for server and wrk, median of {rounds}")
    for name, value in middle.items():
        print(f"  {name:13} {value:8.0f}")
    print(f"GET /cases/ID    {middle['ours case'] / middle['eve case']:5.2f} x eve")
    print(f"GET /cases/ID    {middle['ours case'] / middle['empty']:5.2f} x an empty route")
    print(f"304 of a case    {middle['ours 304'] / middle['empty']:5.2f} x an empty route")
    print(f"list of 50       {middle['ours list'] / middle['eve list']:5.2f} x eve")


if __name__ == "__main__":
    main()
