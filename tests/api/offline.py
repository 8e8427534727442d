"""Serves in a network namespace that has nothing but its loopback; run by test_offline.py.

    unshare --net python -m tests.api.offline CARDS SETTINGS

``CARDS`` is a JSON file with the documents of Models, ``SETTINGS`` one with the folders of the service.
"""

import fcntl
import json
import socket
import struct
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Final

import httpx

from app.core.settings import load_settings
from app.data.client import connect
from app.data.mongod import embedded_mongod, find_mongod
from app.data.schema import DATABASE, MODELS
from app.data.seed import seed
from tests.api.predict_client import CAPTION, ask, ask_many
from tests.service import is_ok, running_service, wait_for

_SET_FLAGS: Final = 0x8914  # SIOCSIFFLAGS
_UP: Final = 1
# What serves: the default models, then those that bring libraries of their own.
_PINS: Final = (("compact", "fused-location"), ("knn-texture-colour", "clip-location"))


def loopback_up() -> None:
    """What ``ip link set lo up`` does."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sH14x", b"lo", _UP))


def is_alone() -> bool:
    """Whether nothing outside can be reached."""
    with suppress(OSError), socket.create_connection(("192.0.2.1", 80), timeout=2):
        return False
    return [name for _, name in socket.if_nameindex() if name != "lo"] == []


def ask_everything(client: httpx.Client, data: bytes) -> dict[str, int]:
    """The status of an answer of every address that asks a model, and of the pages."""
    answers = {
        "predict modality": ask(client, "/predict/modality", data),
        "predict location": ask(client, "/predict/location", data, CAPTION),
        "batch": ask_many(client, "/predict/location/batch", [data, data], [CAPTION, ""]),
        "explain": ask(client, "/explain/location", data, CAPTION),
        "similar": ask(client, "/search/similar", data),
    }
    addresses = ("/docs", "/openapi.json", "/metrics", "/models", "/", "/health/ready")
    answers |= {address: client.get(address, headers={"Accept": "text/html"}) for address in addresses}
    return {name: answer.status_code for name, answer in answers.items()}


def main(cards: Path, folders: Path) -> None:
    loopback_up()
    assert is_alone(), "there is more than a loopback"
    settings = load_settings(**json.loads(folders.read_text()), device="cpu", precision="fp32", max_batch=2)
    with embedded_mongod(settings.home / "db", settings.home / "run", find_mongod()) as uri:
        with connect(uri, settings, timeout_s=0) as client:
            database = client.get_default_database(DATABASE)
            seed(database, settings.dataset_dir)
            for card in json.loads(cards.read_text()):
                database[MODELS].insert_one(card | {"created_at": datetime.fromisoformat(card["created_at"])})
        data = next((settings.dataset_dir / "images").glob("*.png")).read_bytes()
        for modality, location in _PINS:
            pins = {"mongo_uri": uri, "model_modality": modality, "model_location": location}
            with running_service(settings.model_copy(update=pins)) as service:
                wait_for(service, "/health/ready", is_ok)
                statuses = ask_everything(service, data)
            assert set(statuses.values()) == {200}, statuses
    sys.stdout.write("served alone")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
