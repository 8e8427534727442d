"""Serving needs no network: it runs where there is none."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database

from app.core.settings import Settings
from app.data.schema import MODELS
from tests.conftest import REPOSITORY

ALONE = ("unshare", "--net") if os.getuid() == 0 else ("unshare", "--net", "--map-root-user")


def _why_not() -> str | None:
    """Why there can be no network namespace here; None where there can."""
    if shutil.which("unshare") is None:
        return "unshare (util-linux) is not here"
    tried = subprocess.run([*ALONE, "true"], capture_output=True, text=True, check=False)
    return f"no network namespace can be made: {tried.stderr.strip()}" if tried.returncode else None


def test_the_service_runs_in_a_network_namespace_of_its_own(
    every_model: Settings, ml_database: Database[dict[str, Any]], tmp_path: Path
) -> None:
    reason = _why_not()
    if reason is not None:
        pytest.skip(reason)
    cards, folders = tmp_path / "cards.json", tmp_path / "folders.json"
    documents = list(ml_database.client["generated_every_model"][MODELS].find())
    cards.write_text(json.dumps(documents, default=lambda value: value.isoformat()))
    paths = {"home": tmp_path / "home", "data_dir": every_model.data_dir, "models_dir": every_model.models_dir}
    folders.write_text(json.dumps(paths, default=str))
    command = [*ALONE, sys.executable, "-m", "tests.api.offline", str(cards), str(folders)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MEDPIX_")}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout) == (0, "served alone"), done.stderr[-3000:]
