"""`medpix doctor` tells what is there, and what is wrong with it."""

import resource
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from pymongo.database import Database

from app.cli.doctor import Finding, examine
from app.core.settings import Settings, load_settings
from tests.cli.running import environment
from tests.conftest import Document, database_address


def _findings(settings: Settings) -> dict[str, Finding]:
    return {finding.subject: finding for finding in examine(settings)}


def test_a_machine_with_everything_is_in_order(
    generated_database: Database[Document], mongo_server: str, generated_dataset: Path, models_dir: Path, tmp_path: Path
) -> None:
    findings = _findings(
        load_settings(
            home=tmp_path / "home",
            data_dir=generated_dataset,
            models_dir=models_dir,
            mongo_uri=database_address(mongo_server, generated_database.name),
        )
    )
    assert {finding.state for subject, finding in findings.items() if subject not in ("memory", "cores", "port")} == {
        "ok"
    }
    images = len(list((generated_dataset / "images").iterdir()))
    assert findings["data"].detail == f"{generated_dataset} with {images} image files"
    assert (
        f"with 40 cases and {generated_database['Image_Descriptions'].count_documents({})} images"
        in findings["database"].detail
    )
    kind = "an NVIDIA GPU" if find_spec("triton") else "a CPU"
    assert f"packages for {kind}" in findings["device"].detail
    assert findings["models"].detail.startswith("caption-location, compact, fused-location in ")


def test_what_is_wrong_is_named_with_its_remedy(tmp_path: Path) -> None:
    failing = tmp_path / "mongod"
    failing.write_text("#!/bin/sh\necho 'error while loading shared libraries: libcurl.so.4' >&2\nexit 127\n")
    failing.chmod(0o755)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        findings = _findings(load_settings(home=tmp_path / "home", data_dir=tmp_path, mongod=failing, port=port))
    assert findings["port"].state == "warning"
    assert "is used by process" in findings["port"].detail
    assert (findings["data"].state, "medpix fetch" in findings["data"].detail) == ("error", True)
    assert findings["mongod"].state == "error"
    assert "libcurl.so.4" in findings["mongod"].detail
    assert "libcurl4" in findings["mongod"].remedy
    assert findings["models"].state == "warning"
    away = _findings(
        load_settings(home=tmp_path / "home", mongo_uri="mongodb://127.0.0.1:1/", mongo_server_selection_s=0.2)
    )
    assert (away["database"].state, "MEDPIX_MONGO_URI" in away["database"].remedy) == ("error", True)
    assert not (tmp_path / "home").exists(), "the doctor makes nothing"


@pytest.mark.parametrize(("limit", "code"), [(64, 1), (1024, 0)])
def test_the_command_fails_where_the_service_could_not_run(
    tmp_path: Path, generated_dataset: Path, limit: int, code: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app.main", "doctor", "--data", str(generated_dataset)],
        env=environment(tmp_path / "home", 1024),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert f"{limit} open files" in done.stdout
    assert ("ulimit -n 4096" in done.stdout) == (code == 1)
