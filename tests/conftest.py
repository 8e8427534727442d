"""Fixtures shared by all tests: a real mongod, a generated dataset, the real dataset where it is."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from bson import json_util
from pymongo import MongoClient
from pymongo.database import Database

from app.core.settings import Settings, load_settings
from app.data.client import connect
from app.data.mongod import embedded_mongod, find_mongod
from app.data.schema import DATABASE, MODELS, TRAINING_RUNS
from app.data.seed import seed
from ml.dataset.records import Record, load_records
from ml.models import dual_encoder_train, resnet
from ml.models.dual_encoder_train import DualEncoderSettings
from ml.models.model_specs import MODEL_SPECS
from ml.training.context import Options
from ml.training.train import train_model
from tests.medpix_files import write_dataset
from tests.service import is_ok, running_service, wait_for

Document = dict[str, Any]

REPOSITORY = Path(__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, aloud, what needs files or a device that are not here."""
    missing = {}
    if _real_dataset() is None:
        missing["medpix"] = pytest.mark.skip(reason="MedPix 2.0 is not here: set MEDPIX_DATA_DIR")
    if not torch.cuda.is_available():
        missing["gpu"] = pytest.mark.skip(reason="no CUDA device is here")
    for item in items:
        for marker, skip in missing.items():
            if item.get_closest_marker(marker):
                item.add_marker(skip)


def _real_dataset() -> Path | None:
    configured = os.environ.get("MEDPIX_DATA_DIR")
    for candidate in (Path(configured) if configured else None, REPOSITORY.parent / "shared" / "MedPix-2.0"):
        if candidate and (candidate / "splitted_dataset").is_dir():
            return candidate.resolve()
    return None


@pytest.fixture(scope="session")
def mongo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real mongod on a free port with a temporary data folder."""
    folder = tmp_path_factory.mktemp("mongod")
    with embedded_mongod(folder / "db", folder / "run", find_mongod()) as uri:
        yield uri


@pytest.fixture(scope="session")
def mongo_client(mongo_server: str) -> Iterator[MongoClient[Document]]:
    """A client of the test server."""
    with connect(mongo_server, load_settings(), timeout_s=0) as client:
        yield client


@pytest.fixture
def database(mongo_client: MongoClient[Document], request: pytest.FixtureRequest) -> Iterator[Database[Document]]:
    """An empty database of this test's own."""
    name = f"test_{abs(hash(request.node.nodeid)):x}"[:38]
    mongo_client.drop_database(name)
    yield mongo_client[name]
    mongo_client.drop_database(name)


@pytest.fixture(scope="session")
def generated_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small dataset that has every quirk of the real one. Do not change it."""
    return write_dataset(tmp_path_factory.mktemp("generated") / "MedPix-2.0")


@pytest.fixture
def dataset_copy(generated_dataset: Path, tmp_path: Path) -> Path:
    """A copy of the generated dataset that the test may damage."""
    return Path(shutil.copytree(generated_dataset, tmp_path / "MedPix-2.0"))


@pytest.fixture(scope="session")
def generated_database(mongo_client: MongoClient[Document], generated_dataset: Path) -> Database[Document]:
    """A database seeded from the generated dataset. Do not write to its data collections."""
    database = mongo_client["generated"]
    seed(database, generated_dataset)
    return database


@pytest.fixture(scope="session")
def medpix_dir() -> Path:
    """The folder of the real MedPix 2.0; tests that use it carry the marker medpix."""
    folder = _real_dataset()
    if folder is None:
        pytest.skip("MedPix 2.0 is not here: set MEDPIX_DATA_DIR")
    return folder


@pytest.fixture(scope="session")
def medpix_database(mongo_client: MongoClient[Document], medpix_dir: Path) -> Database[Document]:
    """A database seeded from the real dataset. Do not write to its data collections."""
    database = mongo_client[DATABASE]
    seed(database, medpix_dir)
    return database


@pytest.fixture(scope="session")
def ml_database(mongo_client: MongoClient[Document], generated_dataset: Path) -> Database[Document]:
    """The generated dataset in a database that also has models. Do not write to it."""
    database = mongo_client["generated_ml"]
    seed(database, generated_dataset)
    return database


def trained_once(
    name: str,
    tmp_path_factory: pytest.TempPathFactory,
    database: Database[Document],
    train: Callable[[Path], None],
) -> Path:
    """A folder of models that one process of the tests trains, with the cards and runs in the databases of all.

    Args:
        name: of the folder.
        tmp_path_factory: of the session.
        database: with the generated dataset.
        train: trains the models into the folder, and registers them.
    """
    own = tmp_path_factory.getbasetemp()
    root = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder, documents = root / name, root / f"{name}.json"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if documents.exists():
            for collection, found in json_util.loads(documents.read_text()).items():
                database[collection].delete_many({})
                database[collection].insert_many(found)
        else:
            train(folder)
            written = {collection: list(database[collection].find()) for collection in (MODELS, TRAINING_RUNS)}
            documents.write_text(json_util.dumps(written))
    return folder


@pytest.fixture(scope="session")
def models_dir(
    ml_database: Database[Document], generated_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with the default models, trained for two epochs and registered in ``ml_database``."""

    def train(folder: Path) -> None:
        for name in ("compact", "caption-location", "fused-location"):
            train_model(
                name,
                database=ml_database,
                images_dir=generated_dataset / "images",
                models_dir=folder,
                device="cpu",
                options=Options(epochs=2, members=1),
            )

    return trained_once("models", tmp_path_factory, ml_database, train)


@pytest.fixture
def own_models(
    database: Database[Document],
    ml_database: Database[Document],
    generated_dataset: Path,
    models_dir: Path,
    tmp_path: Path,
) -> Path:
    """Copies of the trained models, registered in a seeded database of the test's own."""
    seed(database, generated_dataset)
    names = {"$in": ["compact", "caption-location", "fused-location"]}
    database[MODELS].insert_many(list(ml_database[MODELS].find({"_id": names})))
    return Path(shutil.copytree(models_dir, tmp_path / "models"))


def small_dual_encoder() -> DualEncoderSettings:
    """Of images of 32 pixels."""
    return DualEncoderSettings(preprocess=replace(DualEncoderSettings().preprocess, size=32))


def database_address(server: str, name: str) -> str:
    """The address of one database of the test server."""
    address, _, options = server.partition("?")
    return f"{address.rpartition('/')[0]}/{name}?{options}"


@pytest.fixture(scope="session")
def api(
    generated_database: Database[Document],
    generated_dataset: Path,
    mongo_server: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[httpx.Client]:
    """A client of the running service over the generated dataset, without models."""
    home = tmp_path_factory.mktemp("api")
    uri = database_address(mongo_server, generated_database.name)
    with running_service(load_settings(home=home, mongo_uri=uri, data_dir=generated_dataset)) as client:
        yield client


@pytest.fixture(scope="session")
def medpix_api(
    medpix_database: Database[Document], medpix_dir: Path, mongo_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """A client of the running service over the real dataset, without models."""
    home = tmp_path_factory.mktemp("medpix-api")
    uri = database_address(mongo_server, medpix_database.name)
    with running_service(load_settings(home=home, mongo_uri=uri, data_dir=medpix_dir)) as client:
        yield client


@pytest.fixture(scope="session")
def warm_home(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Makes a folder a MEDPIX_HOME that shares what is found by the content of a model.

    That are converted networks and comparisons of precisions, which take seconds each.
    """
    shared = tmp_path_factory.mktemp("shared-cache")

    def warm(home: Path) -> Path:
        (home / "cache").mkdir(parents=True, exist_ok=True)
        for name in ("openvino", "precision"):
            (shared / name).mkdir(exist_ok=True)
            (home / "cache" / name).symlink_to(shared / name)
        return home

    return warm


@pytest.fixture(scope="session")
def predict_settings(
    warm_home: Callable[[Path], Path],
    ml_database: Database[Document],
    models_dir: Path,
    generated_dataset: Path,
    mongo_server: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Settings:
    """Settings of a service over the generated dataset, with the models that were trained on it."""
    return load_settings(
        home=warm_home(tmp_path_factory.mktemp("predict")),
        mongo_uri=database_address(mongo_server, ml_database.name),
        data_dir=generated_dataset,
        models_dir=models_dir,
        device="cpu",
        precision="fp32",  # so that answers can be compared to the fifth place
    )


@pytest.fixture(scope="session")
def predict_api(predict_settings: Settings) -> Iterator[httpx.Client]:
    """A client of the running service with models for both tasks."""
    with running_service(predict_settings) as client:
        wait_for(client, "/health/ready", is_ok)
        yield client


@pytest.fixture(scope="session")
def every_model(
    mongo_client: MongoClient[Document],
    mongo_server: str,
    ml_database: Database[Document],
    models_dir: Path,
    predict_settings: Settings,
    generated_dataset: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Settings:
    """Settings of a service with every model, the slow ones trained for one epoch."""
    database = mongo_client["generated_every_model"]
    seed(database, generated_dataset)
    small = partial(resnet.ResNetSettings, scratch_preprocess=replace(resnet.ResNetSettings().preprocess, size=96))

    def train(folder: Path) -> None:
        shutil.copytree(models_dir, folder)
        database[MODELS].delete_many({})
        database[MODELS].insert_many(ml_database[MODELS].find())
        missing = [name for name in MODEL_SPECS if database[MODELS].find_one({"_id": name}) is None]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resnet, "ResNetSettings", small)  # quicker
            patch.setattr(dual_encoder_train, "DualEncoderSettings", small_dual_encoder)
            for name in missing:
                train_model(
                    name,
                    database=database,
                    images_dir=generated_dataset / "images",
                    models_dir=folder,
                    device="cpu",
                    options=Options(weights="scratch", epochs=1, members=1),
                )

    folder = trained_once("every-model", tmp_path_factory, database, train)
    uri = database_address(mongo_server, database.name)
    return predict_settings.model_copy(update={"mongo_uri": uri, "models_dir": folder, "max_batch": 2})


@pytest.fixture(scope="session")
def text_settings(
    mongo_client: MongoClient[Document],
    mongo_server: str,
    generated_dataset: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Settings]:
    """A service whose one model is a dual encoder of images of 32 pixels."""
    database = mongo_client["generated_text_search"]
    seed(database, generated_dataset)
    home = tmp_path_factory.mktemp("text-search")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dual_encoder_train, "DualEncoderSettings", small_dual_encoder)
        train_model(
            "clip-location",
            database=database,
            images_dir=generated_dataset / "images",
            models_dir=home / "models",
            device="cpu",
            options=Options(weights="scratch", epochs=1),
        )
    uri = database_address(mongo_server, database.name)
    # A model that is not trained answers the location: the network of the dual encoder need not be compiled.
    yield load_settings(home=home, mongo_uri=uri, data_dir=generated_dataset, device="cpu", model_location="compact")
    mongo_client.drop_database(database)


@pytest.fixture(scope="session")
def text_api(text_settings: Settings) -> Iterator[httpx.Client]:
    """A client of the running service that finds images by words, and has no other model."""
    with running_service(text_settings) as client:
        wait_for(client, "/search/images?q=brain", is_ok)
        yield client


@pytest.fixture(scope="session")
def records(ml_database: Database[Document], generated_dataset: Path) -> list[Record]:
    """All images of the generated dataset."""
    return load_records(ml_database, generated_dataset / "images", ("train", "dev", "test"))


@pytest.fixture(scope="session")
def png(records: list[Record]) -> bytes:
    """An image that no model was trained on."""
    return next(record for record in records if record.split == "test").path.read_bytes()


@pytest.fixture
def serve() -> Callable[[Settings], AbstractContextManager[httpx.Client]]:
    """Runs the service with settings of the test's own."""
    return running_service


@pytest.fixture
def settings(
    tmp_path: Path, mongo_server: str, database: Database[Document], warm_home: Callable[[Path], Path]
) -> Settings:
    """Settings with folders and a database of this test's own."""
    return load_settings(home=warm_home(tmp_path / "home"), mongo_uri=database_address(mongo_server, database.name))
