"""Fixtures of the tests of the pages: a real Chromium and pages that may not complain."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright
from pymongo import MongoClient
from pymongo.database import Database

from app.core.progress import Progress
from app.core.settings import Settings, load_settings
from app.data.schema import MODELS
from app.data.seed import seed
from ml.evaluation.evaluate import Results, evaluate
from ml.evaluation.report import write_report
from ml.training.progress import DatabaseReporter
from tests.conftest import database_address
from tests.service import is_ok, running_service, wait_for
from tests.web import layout

Document = dict[str, Any]

MARKUP = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'

# What Chromium says of every answer that is no success; the tests look at what the page makes of it.
_REFUSED = "Failed to load resource"
# A prediction takes its time on a busy machine; Playwright's own limit of an expectation is 5 s.
_TIMEOUT_MS = 20_000
expect.set_options(timeout=_TIMEOUT_MS)


# Not for the session: while it runs, this thread has an event loop, and other tests start their own.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A real Chromium without a window."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium on PATH; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program)
        yield chromium
        chromium.close()


@pytest.fixture
def complaints() -> list[str]:
    """What a page wrote to the console as an error; a test empties it of what it provoked."""
    return []


@pytest.fixture
def page(browser: Browser, site: str, complaints: list[str]) -> Iterator[Page]:
    """A page of a fresh context; fails the test on an error in the console, a violated CSP among them."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, base_url=site)
    context.grant_permissions(["clipboard-read", "clipboard-write"])

    def heard(message: ConsoleMessage) -> None:
        is_own_file = "/static/" in message.location.get("url", "")
        if message.type == "error" and (is_own_file or not message.text.startswith(_REFUSED)):
            complaints.append(f"{message.text} ({message.location.get('url')})")

    context.on("console", heard)
    context.on("weberror", lambda failure: complaints.append(str(failure.error)))
    page = context.new_page()
    page.set_default_timeout(_TIMEOUT_MS)
    yield page
    context.close()
    assert not complaints


@pytest.fixture
def shoot(page: Page) -> Callable[[str], None]:
    """Saves what the page shows, see ``layout.shoot``."""
    return lambda name: layout.shoot(page, name)


@pytest.fixture(scope="session")
def site(predict_api: httpx.Client) -> str:
    """The address of the running service with models."""
    return str(predict_api.base_url).rstrip("/")


@pytest.fixture(scope="session")
def web_results(ml_database: Database[Document], generated_dataset: Path, models_dir: Path) -> Results:
    """An evaluation of the models that the service answers with."""
    names = ("compact", "caption-location", "fused-location")
    return evaluate(ml_database, generated_dataset / "images", models_dir, names, device="cpu", register=False)


@pytest.fixture
def evaluated(web_results: Results, predict_settings: Settings) -> Iterator[Path]:
    """The folder of a real evaluation, where the service looks for it."""
    folder = predict_settings.home / "evaluation"
    folder.mkdir()
    write_report(web_results, folder)
    yield folder
    shutil.rmtree(folder)


@dataclass(frozen=True, slots=True)
class Training:
    """A service whose first model is in training.

    Attributes:
        site: its address.
        report: tells it how far the training is.
        finish: registers the models.
    """

    site: str
    report: Callable[[float, float], None]
    finish: Callable[[], None]


@pytest.fixture
def training(
    settings: Settings,
    database: Database[Document],
    ml_database: Database[Document],
    generated_dataset: Path,
    models_dir: Path,
    serve: Callable[[Settings], AbstractContextManager[httpx.Client]],
) -> Iterator[Training]:
    """A service without models; of one it knows that 40 % of its training for both tasks is done."""
    seed(database, generated_dataset)
    tell = DatabaseReporter(database, every=0)
    tasks = ("modality", "location")

    def report(fraction: float, eta_s: float) -> None:
        tell(Progress("compact", tasks, "running", fraction, eta_s=eta_s))

    def finish() -> None:
        database[MODELS].insert_many(ml_database[MODELS].find())
        tell(Progress("compact", tasks, "done", 1.0))

    report(0.4, 30.0)
    with serve(settings.model_copy(update={"data_dir": generated_dataset, "models_dir": models_dir})) as client:
        wait_for(client, "/models", lambda answer: answer.json()["tasks"]["modality"]["state"] == "running")
        yield Training(str(client.base_url).rstrip("/"), report, finish)


@pytest.fixture(scope="package")
def medpix_site(
    mongo_client: MongoClient[Document],
    mongo_server: str,
    ml_database: Database[Document],
    models_dir: Path,
    medpix_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """The address of a service over the real dataset, with models that learned from the generated one."""
    database = mongo_client["medpix_web"]
    seed(database, medpix_dir)
    database[MODELS].insert_many(ml_database[MODELS].find())
    settings = load_settings(
        home=tmp_path_factory.mktemp("medpix-web"),
        mongo_uri=database_address(mongo_server, database.name),
        data_dir=medpix_dir,
        models_dir=models_dir,
        device="cpu",
        precision="fp32",
    )
    with running_service(settings) as client:
        wait_for(client, "/health/ready", is_ok)
        yield str(client.base_url).rstrip("/")


@pytest.fixture
def hostile_site(
    dataset_copy: Path,
    settings: Settings,
    database: Database[Document],
    serve: Callable[[Settings], AbstractContextManager[httpx.Client]],
) -> Iterator[str]:
    """The address of a service whose data try to become markup."""
    for file in dataset_copy.glob("splitted_dataset/*.jsonl"):
        records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for record in records:
            if "Case" in record:
                record["Case"] |= {"Title": f"{MARKUP} lesion", "History": MARKUP}
                record["Topic"] |= {"External Links": "javascript:window.hit=1", "Category": MARKUP}
            else:
                record["Description"]["Caption"] = f"{MARKUP} of a lesion"
        file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    seed(database, dataset_copy)
    with serve(settings.model_copy(update={"data_dir": dataset_copy})) as client:
        yield str(client.base_url).rstrip("/")
