"""The container files: valid, pinned, closed to the outside, without secrets, without root."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from ruamel.yaml import YAML

from app.core.settings import Settings
from app.data.dataset import JSONL_FOLDER
from tests.conftest import REPOSITORY

Document = dict[str, Any]

_COMPOSE_FILES: Final = ("docker-compose.yml", "docker-compose.gpu.yml")
_PINNED: Final = re.compile(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?")
_VARIABLE: Final = re.compile(r"\$\{(?P<name>\w+)(?P<rule>[^}]*)\}")
_SECRETS: Final = {"MEDPIX_ROOT_PASSWORD", "MEDPIX_APP_PASSWORD", "MEDPIX_API_PASSWORD"}


def _text(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def _compose(name: str = "docker-compose.yml") -> Document:
    document: Document = YAML(typ="safe").load(_text(name))
    return document


def _instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^\s*#.*\n", "", _text("Dockerfile")))
    return [(line.split()[0], line.partition(" ")[2]) for line in joined.splitlines() if line.strip()]


@pytest.mark.parametrize("name", _COMPOSE_FILES)
def test_the_compose_files_follow_the_compose_specification(name: str) -> None:
    checker = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", name]
    done = subprocess.run(checker, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_image_is_pinned_or_built_here() -> None:
    for name, service in _compose()["services"].items():
        assert ("image" in service) != ("build" in service), name
        assert "image" not in service or _PINNED.fullmatch(service["image"]), name
    arguments = dict(value.partition("=")[::2] for kind, value in _instructions() if kind == "ARG")
    assert [value for kind, value in _instructions() if kind == "FROM"] == ["${PYTHON_IMAGE}"]
    assert _PINNED.fullmatch(arguments["PYTHON_IMAGE"])


def test_ports_are_open_to_this_machine_alone() -> None:
    ports = {name: service.get("ports", []) for name, service in _compose()["services"].items()}
    assert {name for name, published in ports.items() if published} == {"api", "proxy"}
    assert all(port.startswith("127.0.0.1:") for name in ("api", "proxy") for port in ports[name])
    assert all("network_mode" not in service for service in _compose()["services"].values())


def test_every_service_is_confined() -> None:
    for name, service in _compose()["services"].items():
        assert int(service["user"].partition(":")[0]) > 0, name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not {"privileged", "cap_add", "pid", "ipc"} & set(service), name
        assert not [mount for mount in service["volumes"] if "docker.sock" in mount], name


def test_every_secret_is_required_and_none_is_written_down() -> None:
    used = list(_VARIABLE.finditer(_text("docker-compose.yml")))
    assert {match["name"] for match in used if "PASSWORD" in match["name"]} == _SECRETS
    for match in used:
        if match["name"] in _SECRETS:
            assert match["rule"].startswith(":?"), match.group()
            assert ".env.example" in match["rule"]
    for service in _compose()["services"].values():
        for name, value in service["environment"].items():
            if "PASSWORD" in name or "@" in value:
                assert _VARIABLE.search(value), name


def test_the_example_names_every_variable_and_gives_no_password() -> None:
    lines = _text(".env.example").splitlines()
    given = dict(line.partition("=")[::2] for line in lines if line and not line.startswith("#"))
    assert set(given) == {match["name"] for match in _VARIABLE.finditer(_text("docker-compose.yml"))}
    assert not any(given[name] for name in _SECRETS)
    for name in given:  # each has a comment above it
        assert lines[lines.index(f"{name}={given[name]}") - 1].startswith("#"), name
    assert ".env\n" in _text(".gitignore")


def test_services_start_in_the_order_of_what_they_need() -> None:
    needs = {
        name: {other: rule["condition"] for other, rule in service.get("depends_on", {}).items()}
        for name, service in _compose()["services"].items()
    }
    assert needs == {
        "mongo": {},
        "seed": {"mongo": "service_healthy"},
        "train": {"seed": "service_completed_successfully"},
        "api": {"mongo": "service_healthy", "seed": "service_completed_successfully"},
        "proxy": {"api": "service_healthy"},
    }


def test_the_proxy_starts_with_its_profile_alone() -> None:
    profiles = {name: service.get("profiles") for name, service in _compose()["services"].items()}
    assert {name for name, wanted in profiles.items() if wanted} == {"proxy"}
    assert profiles["proxy"] == ["replicas"]
    assert "container_name" not in _compose()["services"]["api"], "a name of its own forbids --scale"


def test_one_shot_services_end_and_the_others_come_back() -> None:
    restarts = {name: service.get("restart", "no") for name, service in _compose()["services"].items()}
    lasting = dict.fromkeys(("mongo", "api", "proxy"), "unless-stopped")
    assert restarts == {**lasting, "seed": "no", "train": "no"}


def test_the_database_is_asked_by_name_as_the_app_user() -> None:
    check = _compose()["services"]["mongo"]["healthcheck"]["test"][1]
    for part in ('--host "$$(hostname)"', "--username app", "isWritablePrimary"):
        assert part in check


def test_mounted_files_are_there_and_data_stay_in_named_volumes() -> None:
    compose = _compose()
    for service in compose["services"].values():
        for mount in service["volumes"]:
            source = re.sub(r"^\$\{\w+:-(\w+)\}", r"\1", mount).split(":")[0]
            assert source in compose["volumes"] or (REPOSITORY / source).exists(), mount
    api = [mount for mount in compose["services"]["api"]["volumes"] if not mount.endswith(":ro")]
    assert api == ["cache:/var/lib/medpix/cache"]


def test_the_training_leaves_its_evaluation_where_the_api_reads_it() -> None:
    services = _compose()["services"]
    assert services["train"]["command"] == ["medpix", "train", "--missing", "--calibrate", "--evaluate"]
    assert "evaluation:/var/lib/medpix/evaluation" in services["train"]["volumes"]
    assert "evaluation:/var/lib/medpix/evaluation:ro" in services["api"]["volumes"]
    variables = [value for kind, value in _instructions() if kind == "ENV"]
    assert any("MEDPIX_HOME=/var/lib/medpix " in f"{value} " for value in variables)
    # A named volume takes over the owner of the folder that it covers.
    folders = next(value for kind, value in _instructions() if kind == "RUN" and "useradd" in value).split()
    for service in services.values():
        for mount in service["volumes"]:
            target = mount.split(":")[-1 if not mount.endswith(":ro") else -2]
            assert not target.startswith("/var/lib/medpix") or target in folders, mount


def test_the_gpu_file_adds_a_reservation_and_builds_one_image() -> None:
    services = _compose("docker-compose.gpu.yml")["services"]
    built = {name for name, service in _compose()["services"].items() if "build" in service}
    assert set(services) == built, "all of one image"
    for service in services.values():
        assert service["build"] == {"context": ".", "args": {"GPU": "1"}}
    assert set(services.pop("seed")) == {"build"}
    for service in services.values():
        assert set(service) == {"build", "deploy"}
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["driver"] == "nvidia"
        assert "gpu" in device["capabilities"]


def test_the_image_runs_as_a_user_with_a_number_and_not_as_root() -> None:
    users = [value for kind, value in _instructions() if kind == "USER"]
    assert users == ["10001:10001"]
    assert {service["user"] for service in _compose()["services"].values() if "build" in service} == set(users)
    kinds = [kind for kind, _ in _instructions()]
    assert "RUN" not in kinds[kinds.index("USER") :]


def test_the_image_installs_what_is_locked_and_names_no_index() -> None:
    installs = [value for kind, value in _instructions() if kind == "RUN" and "pip install" in value]
    assert len(installs) == 2
    assert "--require-hashes" in installs[0]
    assert "--no-deps" in installs[1]
    assert "--no-build-isolation" in installs[1]
    for name in ("Dockerfile", "docker-compose.yml", "requirements.lock"):
        assert not re.search(r"https?://(?!127\.0\.0\.1)|index-url|find-links|trusted-host", _text(name)), name


def test_make_and_the_image_leave_out_the_same_locked_packages_on_a_cpu() -> None:
    arguments = dict(value.partition("=")[::2] for kind, value in _instructions() if kind == "ARG")
    assert arguments["GPU"] == "0"
    left_out = arguments["GPU_ONLY"].strip('"').split()
    made = re.search(r"(?m)^GPU_ONLY := (.+)$", _text("Makefile"))
    assert made is not None
    assert made[1].split() == left_out
    locked = set(re.findall(r"(?m)^([a-z0-9.-]+)==", _text("requirements.lock")))
    assert set(left_out) <= locked


@pytest.mark.parametrize(("gpu", "missing"), [("0", {"triton", "nvidia-cusolver"}), ("1", set())])
def test_make_installs_what_the_machine_can_use(tmp_path: Path, gpu: str, missing: set[str]) -> None:
    """A program in the place of uv writes down what it is given."""
    (tmp_path / "uv").write_text(f'#!/bin/sh\ncase "$*" in *sync*) cat > {tmp_path}/packages;; esac\n')
    (tmp_path / "uv").chmod(0o755)
    (tmp_path / "uv.stamp").touch()
    command = [
        "make",
        "install",
        f"GPU={gpu}",
        f"VENV={tmp_path}",
        f"UV={tmp_path / 'uv'}",
        "-o",
        f"{tmp_path}/uv.stamp",
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    given = set(re.findall(r"(?m)^([a-z0-9.-]+)==", (tmp_path / "packages").read_text()))
    locked = set(re.findall(r"(?m)^([a-z0-9.-]+)==", _text("requirements.lock")))
    assert "nvidia-cudnn-cu13" in given
    assert (locked - given) & {"triton", "nvidia-cusolver"} == missing
    assert "GB to download" in done.stdout


def test_settings_of_the_containers_are_settings_of_the_service() -> None:
    settings = {f"MEDPIX_{name}".upper() for name in Settings.model_fields}
    for service in _compose()["services"].values():
        if "build" in service:
            assert set(service["environment"]) <= settings
    written = {name for kind, value in _instructions() if kind == "ENV" for name in re.findall(r"(MEDPIX_\w+)=", value)}
    assert written <= settings


def test_only_what_the_dockerfile_copies_is_sent_to_the_engine() -> None:
    rules = _text(".dockerignore").splitlines()
    assert "*" in rules
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {name for kind, value in _instructions() if kind == "COPY" for name in value.split()[:-1]}
    assert copied - {"${REQUIREMENTS}"} <= let_in
    assert all((REPOSITORY / name).exists() for name in let_in)
    assert not {".env", ".git", ".venv", ".medpix"} & let_in
    assert not any(Path(name).is_dir() and (REPOSITORY / name / JSONL_FOLDER).exists() for name in let_in)


@pytest.mark.parametrize("name", ["requirements.lock", "tests/requirements.lock", "benchmarks/requirements.lock"])
def test_every_locked_package_has_a_hash_and_a_place_nowhere(name: str) -> None:
    lines = [line for line in _text(name).splitlines() if not line.lstrip().startswith("#")]
    packages = [line for line in lines if not line.startswith(" ")]
    assert len(packages) > 50
    assert all(re.match(r"[a-z0-9.-]+==\S+ ", line) and line.endswith("\\") for line in packages)
    assert all(re.fullmatch(r"\s+--hash=sha256:[0-9a-f]{64}( \\)?", line) for line in lines if line.startswith(" "))
