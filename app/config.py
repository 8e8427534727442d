"""Every setting of the service in one place, read from MEDPIX_* variables or a .env file."""

from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

FolderPath = Annotated[Path, AfterValidator(lambda path: path.expanduser().resolve())]


class Settings(BaseSettings):
    """Settings of the service and the command line.

    Each field is read from the environment variable of the same name with the prefix ``MEDPIX_``.
    """

    model_config = SettingsConfigDict(env_prefix="MEDPIX_", env_file=".env", extra="ignore")

    home: FolderPath = Field(default=Path(".medpix"), description="Folder for everything a run writes")
    data_dir: FolderPath | None = Field(default=None, description="MedPix 2.0 folder; default: <home>/data")
    models_dir: FolderPath | None = Field(default=None, description="Model files; default: <home>/models")
    mongo_uri: str | None = Field(default=None, description="mongodb:// URI; unset: an embedded mongod")


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()
