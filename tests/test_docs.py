"""Whatever README and docs/ name exists: links, commands with their options, modules, settings, addresses."""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from app.api.factory import create_app
from app.core.settings import Settings
from app.main import app
from tests.conftest import REPOSITORY

PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")])
pytestmark = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))

# Addresses of MongoDB, of the model hub and of other programs, which are not routes of this service.
_ADDRESS = re.compile(r"(?:(?:GET|POST|PUT|PATCH|DELETE) |127\.0\.0\.1:8000)(/[^\s`'\"?|),]*)")


def commands(text: str) -> Iterator[list[str]]:
    """The words of each `medpix` command line."""
    for line in re.findall(r"(?:^ +|`|\$ )(medpix [^`\n#]*)", text, flags=re.MULTILINE):
        yield line.split()[1:]


def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


def test_every_file_named_exists(page: Path) -> None:
    for name in re.findall(r"`((?:app|ml|tests|benchmarks|docs|mongo-init)/[\w./-]+)`", page.read_text()):
        assert (REPOSITORY / name).exists(), name


def test_every_command_exists(page: Path) -> None:
    group = get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    for words in commands(page.read_text()):
        names = [word for word in words if re.fullmatch(r"[a-z]+", word)]
        if not names:
            assert words[0] in ("--help", "--version"), words
            continue
        assert names[0] in group.commands, words
        options = {option for parameter in group.commands[names[0]].params for option in parameter.opts}
        for option in (word.partition("=")[0] for word in words if word.startswith("--")):
            assert option in options | {"--help"}, words


def test_every_make_target_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE))
    for target in re.findall(r"(?:^ +|`)make ([a-z]+)", page.read_text(), flags=re.MULTILINE):
        assert target in targets


def test_every_module_exists(page: Path) -> None:
    for module in re.findall(r"(?:python|torchrun [^`\n]*) -m ((?:app|ml|benchmarks)[\w.]*)", page.read_text()):
        assert module.endswith(".NAME") or find_spec(module), module
    for name in re.findall(r"`benchmarks\.(\w+)", page.read_text()):
        assert name == "NAME" or find_spec(f"benchmarks.{name}"), name


def test_every_setting_exists(page: Path) -> None:
    # Read by docker-compose.yml, not by the service.
    compose = set(re.findall(r"MEDPIX_\w+", (REPOSITORY / "docker-compose.yml").read_text()))
    settings = {f"MEDPIX_{name.upper()}" for name in Settings.model_fields} | compose
    assert set(re.findall(r"MEDPIX_[A-Z_]+[A-Z]", page.read_text())) <= settings


def test_every_address_exists(page: Path) -> None:
    paths = [*create_app(Settings()).openapi()["paths"], "/", "/docs", "/openapi.json"]
    routes = [re.sub(r"\{[^}]*\}", "[^/]+", path) for path in paths]
    for address in _ADDRESS.findall(page.read_text()):
        concrete = re.sub(r"\{[^}]*\}|<[^>]*>", "x", address)
        assert any(re.fullmatch(route, concrete) for route in routes), address
