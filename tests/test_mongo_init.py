"""The init scripts of the mongo image, run on a real mongod; then what its users may and may not do."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import playwright
import pytest
from bson import json_util
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import OperationFailure

from app.core.progress import Progress
from app.core.settings import load_settings
from app.data import schema
from app.data.mongod import find_mongod
from app.data.seed import seed
from ml.training.progress import DatabaseReporter
from tests.conftest import REPOSITORY
from tests.ports import free_port
from tests.service import running_service

Document = dict[str, Any]

_INIT = REPOSITORY / "mongo-init" / "init.js"
_MONGOSH = Path(__file__).parent / "mongosh.js"
_NODE = Path(playwright.__file__).parent / "driver" / "node"
_APP_PASSWORD = "app-password-of-the-test"
_API_PASSWORD = "api-password-of-the-test"
_ASKS_A_MODEL = ("/similar", "/search/images")  # no model is registered in this database


@contextmanager
def _mongod(data: Path, port: int, *options: str) -> Iterator[str]:
    """A mongod that runs inside the block; yields HOST:PORT once it answers."""
    data.mkdir(exist_ok=True)
    arguments = ["--dbpath", str(data), "--port", str(port), "--bind_ip", "127.0.0.1", "--nounixsocket", *options]
    log = data.with_suffix(".log")
    with log.open("a") as file:
        process = subprocess.Popen([str(find_mongod()), *arguments], stdout=file, stderr=subprocess.STDOUT)
    try:
        with MongoClient[Document](f"mongodb://127.0.0.1:{port}/?directConnection=true") as client:
            client.admin.command("ping")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def _initialise(server: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run init.js; the image's entrypoint does so on a server that asks nobody for a password."""
    paths = {"MEDPIX_COLLECTIONS": str(REPOSITORY / "app" / "data" / "collections.json")}
    shell = subprocess.Popen(
        [str(_NODE), str(_MONGOSH), str(_INIT)],
        env={"PATH": os.environ["PATH"], **paths, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert shell.stdin is not None
    assert shell.stdout is not None
    assert shell.stderr is not None
    with shell, MongoClient[Document](f"mongodb://{server}/?directConnection=true") as client:
        for line in shell.stdout:
            call = json.loads(line)
            try:
                reply = client[call["database"]].command(call["command"])
            except OperationFailure as error:
                reply = {"ok": 0, "errmsg": str(error)}
            shell.stdin.write(json_util.dumps(reply) + "\n")
            shell.stdin.flush()
        errors = shell.stderr.read()
    return subprocess.CompletedProcess(shell.args, shell.returncode, "", errors)


@dataclass(frozen=True)
class _Server:
    host: str

    def uri(self, user: str, password: str) -> str:
        return f"mongodb://{user}:{password}@{self.host}/{schema.DATABASE}?directConnection=true"

    def client(self, user: str, password: str) -> MongoClient[Document]:
        return MongoClient(self.uri(user, password), serverSelectionTimeoutMS=5000, tz_aware=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Server]:
    """A server whose empty folder init.js has filled, now with access control, as in the container."""
    data, port = tmp_path_factory.mktemp("mongo-init") / "db", free_port()
    with _mongod(data, port) as host:
        done = _initialise(host, MEDPIX_APP_PASSWORD=_APP_PASSWORD, MEDPIX_API_PASSWORD=_API_PASSWORD)
        assert done.returncode == 0, done.stderr
        assert "users app, api" in done.stderr
    with _mongod(data, port, "--auth") as host:
        yield _Server(host)


@pytest.fixture(scope="module")
def as_app(server: _Server) -> Iterator[Database[Document]]:
    """The database as the user of seeding and training sees it."""
    with server.client("app", _APP_PASSWORD) as client:
        yield client.get_default_database()


@pytest.fixture(scope="module")
def seeded(as_app: Database[Document], generated_dataset: Path) -> Database[Document]:
    """The same, seeded by that user."""
    seed(as_app, generated_dataset)
    return as_app


@pytest.fixture(scope="module")
def as_api(server: _Server, seeded: Database[Document]) -> Iterator[Database[Document]]:
    """The seeded database as the user of the API sees it."""
    assert seeded.name == schema.DATABASE
    with server.client("api", _API_PASSWORD) as client:
        yield client.get_default_database()


def _definition(database: Database[Document]) -> Document:
    # collMod writes the defaults of a validator out, where creating a collection does not.
    defaults = {"validationLevel": "strict", "validationAction": "error"}
    collections = {
        info["name"]: defaults | info["options"] if "validator" in info["options"] else info["options"]
        for info in database.list_collections()
    }
    collections.pop("system.views", None)
    indexes = {
        name: database[name].index_information() for name, options in collections.items() if "viewOn" not in options
    }
    return {"collections": collections, "indexes": indexes}


def test_script_and_seeding_make_what_seeding_alone_makes(
    as_app: Database[Document], database: Database[Document]
) -> None:
    made = set(_definition(as_app)["indexes"])
    schema.ensure_schema(as_app)
    schema.ensure_schema(database)
    assert made == set(_definition(database)["indexes"])
    assert _definition(as_app) == _definition(database)


def test_the_app_user_seeds_and_a_second_time_changes_nothing(
    seeded: Database[Document], generated_dataset: Path
) -> None:
    again = seed(seeded, generated_dataset)
    for counts in (again.cases, again.images):
        assert (counts.inserted, counts.changed, counts.removed) == (0, 0, ())
        assert counts.unchanged > 0


def test_the_app_user_may_bring_definitions_up_to_date(
    as_app: Database[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = schema._definitions()
    stricter = [
        {**each, "validator": {"$and": [each["validator"]]}, "indexes": [{"name": "new", "keys": [["new", 1]]}]}
        for each in now.collections
    ]
    wider = [{**each, "pipeline": [*each["pipeline"], {"$unset": "nothing"}]} for each in now.views]
    other = schema._Definitions(tuple(stricter), tuple(wider))
    with monkeypatch.context() as patched:
        patched.setattr(schema, "_definitions", lambda: other)
        schema.ensure_schema(as_app)
        assert _definition(as_app)["collections"][schema.MODELS]["validator"] == stricter[3]["validator"]
    schema.ensure_schema(as_app)
    assert _definition(as_app)["collections"][schema.MODELS]["validator"] == now.collections[3]["validator"]


def test_the_app_user_writes_what_training_writes(as_app: Database[Document]) -> None:
    DatabaseReporter(as_app)(Progress("a-model", ("modality",), "running"))
    as_app[schema.MODELS].update_one({"_id": "a-model"}, {"$set": {"name": "a-model"}}, upsert=True)
    assert as_app[schema.MODELS].delete_one({"_id": "a-model"}).deleted_count == 1
    assert as_app[schema.TRAINING_RUNS].delete_one({"_id": "a-model"}).deleted_count == 1


def test_the_api_user_serves_everything(
    server: _Server, as_api: Database[Document], generated_dataset: Path, tmp_path: Path
) -> None:
    uri = server.uri("api", _API_PASSWORD)
    with running_service(load_settings(home=tmp_path, mongo_uri=uri, data_dir=generated_dataset)) as client:
        image = client.get("/images?limit=1").json()["items"][0]
        annotated = client.post(f"/images/{image['image']}/annotations", json={"comment": "seen"})
        assert annotated.status_code == 201
        saved = client.post("/views", json={"name": "CT", "query": "modality=CT"})
        assert saved.status_code == 201, saved.text
        doomed = client.post("/views", json={"name": "MR", "query": "modality=MR"}).json()["links"]["self"]
        assert client.delete(doomed).status_code == 204
        keys = {"image": image["image"], "u_id": image["u_id"], "annotation": annotated.json()["id"]}
        keys |= {"view": saved.json()["id"], "of": "images", "file_format": "csv"}
        amended = client.put(f"/annotations/{keys['annotation']}", json={"comment": "seen again"})
        assert amended.status_code == 201, amended.text
        paths = [path for path, methods in client.get("/openapi.json").json()["paths"].items() if "get" in methods]
        for path in paths:
            address = path.format(**keys, name="no-such-model")
            answer = client.get(address, params={"q": "brain"} if path.startswith("/search") else {})
            expected = (
                404
                if "{name}" in path or path.startswith("/evaluation")
                else 503
                if path.endswith(_ASKS_A_MODEL)
                else 200
            )
            assert answer.status_code == expected, (address, answer.text)
        assert client.get("/health/ready").json()["database"]["cases"] == as_api[schema.CASES].count_documents({})


def test_the_api_user_can_only_add_annotations_and_views(
    as_api: Database[Document], seeded: Database[Document]
) -> None:
    names = [name for name in seeded.list_collection_names() if not name.startswith("system.")]
    assert set(names) >= {schema.CASES, schema.IMAGES, schema.MODELS, schema.SEED_RUNS}
    for name in names:
        attempts: list[Document] = [
            {"insert": name, "documents": [{"_id": "x"}]},
            {"update": name, "updates": [{"q": {}, "u": {"$set": {"split": "test"}}, "multi": True}]},
            {"delete": name, "deletes": [{"q": {}, "limit": 0}]},
            {"drop": name},
            {"collMod": name, "validator": {}},
            {"createIndexes": name, "indexes": [{"key": {"x": 1}, "name": "x"}]},
            {"aggregate": schema.CASES, "pipeline": [{"$out": name}], "cursor": {}},
            {"aggregate": schema.CASES, "pipeline": [{"$merge": name}], "cursor": {}},
        ]
        # Readers add annotations through the API, and can neither change nor remove one; views they also delete.
        # Whoever may insert and delete may also replace a whole collection.
        allowed = {schema.ANNOTATIONS: ["insert"], schema.VIEWS: ["insert", "delete", "$out"]}.get(name, [])
        for attempt in (each for each in attempts if not any(f"'{word}'" in str(each) for word in allowed)):
            _refused(as_api, attempt)
    for attempt in ({"create": "new"}, {"dropDatabase": 1}, {"usersInfo": 1}, {"updateUser": "app", "pwd": "x" * 12}):
        _refused(as_api, attempt)
    assert seeded[schema.CASES].count_documents({}) > 0


def test_no_user_of_the_service_administers_the_server(as_app: Database[Document]) -> None:
    _refused(as_app, {"updateUser": "api", "roles": ["readWrite"]})
    _refused(as_app, {"grantRolesToUser": "app", "roles": ["dbOwner"]})
    _refused(as_app.client["admin"], {"listDatabases": 1, "authorizedDatabases": False})
    _refused(as_app.client["admin"], {"shutdown": 1})


def _refused(database: Database[Document], command: Document) -> None:
    with pytest.raises(OperationFailure) as refused:
        database.command(command)
    assert refused.value.code == 13, (command, refused.value)


def test_without_the_password_nothing_is_readable(server: _Server) -> None:
    with (
        MongoClient[Document](f"mongodb://{server.host}/?directConnection=true") as client,
        pytest.raises(OperationFailure, match="authentication"),
    ):
        client[schema.DATABASE][schema.CASES].find_one()
    with server.client("api", "wrong-password") as client, pytest.raises(OperationFailure, match="Authentication"):
        client[schema.DATABASE][schema.CASES].find_one()


@pytest.mark.parametrize(
    ("user", "password", "message"),
    [
        ("app", "wrong-password", "MongoDB refused the user or the password"),
        ("api", _API_PASSWORD, "may not do this: not authorized on medpix"),
    ],
)
def test_the_command_line_says_what_is_wrong_with_a_user(
    server: _Server, generated_dataset: Path, tmp_path: Path, user: str, password: str, message: str
) -> None:
    address = {"MEDPIX_MONGO_URI": server.uri(user, password), "MEDPIX_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "app.main", "seed", "--data", str(generated_dataset)]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | address, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert password not in done.stderr
    assert "full error" not in done.stderr


@pytest.mark.parametrize("password", ["", "short", "with@sign:and/slash"])
def test_a_password_that_cannot_be_used_is_named_and_nothing_is_made(tmp_path: Path, password: str) -> None:
    with _mongod(tmp_path / "db", free_port()) as host:
        done = _initialise(host, MEDPIX_APP_PASSWORD=_APP_PASSWORD, MEDPIX_API_PASSWORD=password)
        assert done.returncode == 1
        assert "MEDPIX_API_PASSWORD must have 12 or more" in done.stderr
        assert password == "" or password not in done.stderr
        with MongoClient[Document](f"mongodb://{host}/?directConnection=true") as client:
            assert schema.DATABASE not in client.list_database_names()
            assert client[schema.DATABASE].command("usersInfo")["users"] == []


def test_run_again_it_repairs_a_half_made_database_and_changes_passwords_and_roles(tmp_path: Path) -> None:
    passwords = {"MEDPIX_APP_PASSWORD": _APP_PASSWORD, "MEDPIX_API_PASSWORD": _API_PASSWORD}
    data, port = tmp_path / "db", free_port()
    with _mongod(data, port) as host:
        assert _initialise(host, **passwords).returncode == 0
        with MongoClient[Document](f"mongodb://{host}/?directConnection=true") as client:
            client.admin.command("createUser", "root", pwd="root-password", roles=["root"])
            database = client[schema.DATABASE]
            complete = _definition(database)
            database.drop_collection(schema.CASES)
            database.drop_collection(schema.IMAGE_REPORTS)
            database.command("updateRole", "reader", privileges=[])
    with _mongod(data, port, "--auth") as host:
        server = _Server(host)
        done = _initialise(f"root:root-password@{host}", **passwords | {"MEDPIX_API_PASSWORD": "another-password"})
        assert done.returncode == 0, done.stderr
        with server.client("app", _APP_PASSWORD) as client:
            assert _definition(client.get_default_database()) == complete
        with server.client("api", "another-password") as client:
            assert client.get_default_database()[schema.CASES].find_one() is None
        with server.client("api", _API_PASSWORD) as client, pytest.raises(OperationFailure, match="Authentication"):
            client.get_default_database()[schema.CASES].find_one()


def test_a_script_that_breaks_off_leaves_no_user_behind(tmp_path: Path) -> None:
    """The health check logs in as one of them: a half-made database never counts as healthy."""
    broken = tmp_path / "collections.json"
    definitions = {"collections": [{"name": "Some", "validator": {}, "indexes": []}], "views": []}
    broken.write_text(json.dumps(definitions | {"views": [{"name": "V", "source": "S", "pipeline": [{"$no": 1}]}]}))
    passwords = {"MEDPIX_APP_PASSWORD": _APP_PASSWORD, "MEDPIX_API_PASSWORD": _API_PASSWORD}
    with (
        _mongod(tmp_path / "db", free_port()) as host,
        MongoClient[Document](f"mongodb://{host}/?directConnection=true") as client,
    ):
        done = _initialise(host, MEDPIX_COLLECTIONS=str(broken), **passwords)
        assert done.returncode == 1
        assert "Unrecognized pipeline stage" in done.stderr
        assert "Some" in client[schema.DATABASE].list_collection_names()
        assert client[schema.DATABASE].command("usersInfo")["users"] == []
