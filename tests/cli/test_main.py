"""The command itself: its help, its version, its warnings."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from app.core import settings
from app.main import app
from tests.cli.running import medpix
from tests.conftest import REPOSITORY

COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]  # that of several is a group


def test_help_imports_neither_torch_nor_the_database_driver() -> None:
    code = (
        "import sys; sys.argv = ['medpix', '--help']\n"
        "from app.main import main\n"
        "try: main()\n"
        "except SystemExit: print(sorted({'torch', 'pymongo', 'pydantic', 'fastapi', 'numpy'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_names_every_command_and_gives_examples() -> None:
    output = CliRunner().invoke(app, ["--help"]).output
    for command in COMMANDS:
        assert f" {command} " in output
    assert "medpix export ct.parquet --where modality=CT" in output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command: str) -> None:
    done = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    options = [line for line in done.output.splitlines() if re.match(r"│ [* ]*--", line)]
    assert options
    assert all(len(line.strip("│* ").split("  ")) > 1 for line in options)


def test_the_version_is_printed(tmp_path: Path) -> None:
    assert medpix(tmp_path, "--version").stdout == f"medpix {version('medpix-service')}\n"


def test_variables_that_are_no_settings_are_named(tmp_path: Path) -> None:
    done = medpix(tmp_path, "fetch", "--data", str(tmp_path), MEDPIX_PROT="1", MEDPIX_FETCH_URL="http://127.0.0.1:1/")
    assert "MEDPIX_PROT is not a setting and is ignored. Did you mean MEDPIX_PORT?" in done.stderr


def test_what_docker_compose_reads_is_known() -> None:
    """Compose and the service share one .env file."""
    example = (REPOSITORY / ".env.example").read_text()
    names = {line.partition("=")[0] for line in example.splitlines() if line.startswith("MEDPIX_")}
    fields = {f"MEDPIX_{name.upper()}" for name in settings.Settings.model_fields}
    assert names - fields <= settings._COMPOSE
