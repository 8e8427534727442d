"""A registry with copies of trained models, and a model manager that serves it."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pymongo.database import Database

from app.core.settings import Settings
from app.core.telemetry import Metrics
from app.data.schema import MODELS
from app.serving.model_manager import ModelManager

Document = dict[str, Any]


class TrainedCopies:
    """A registry of the test's own with copies of trained models."""

    def __init__(
        self, database: Database[Document], trained: Database[Document], source: Path, settings: Settings
    ) -> None:
        self.database, self._trained, self._source = database, trained, source
        self.settings = settings

    def register(self, name: str, *, of: str = "compact", number: int = 1, score: float = 0.5, **changes: Any) -> Path:
        """Register a copy of a trained model; returns its folder."""
        version = f"{name}-{number}"
        document = self._trained[MODELS].find_one({"_id": of})
        assert document is not None
        folder = self.settings.model_files_dir / name / version
        shutil.copytree(self._source / of / document["version"], folder)
        document["metrics"]["dev"] = {task: {"accuracy": score} for task in document["tasks"]}
        changed = document | {"_id": name, "name": name, "version": version} | changes
        self.database[MODELS].replace_one({"_id": name}, changed, upsert=True)
        return folder


@asynccontextmanager
async def running_manager(
    copies: TrainedCopies, metrics: Metrics | None = None, selected: Mapping[str, str] | None = None
) -> AsyncIterator[ModelManager]:
    settings = copies.settings.model_copy(update=selected)
    server = ModelManager(settings, copies.database, metrics or Metrics())
    server.start()
    try:
        yield server
    finally:
        await server.stop()


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen within a minute")
