"""Keeps trained models: files in a folder, cards in MongoDB; a model is registered completely or not at all."""

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

from pydantic import ValidationError
from pymongo.database import Database

from app.core.exceptions import UserError
from app.core.files import atomic_write
from app.data import schema
from ml.models.base import ServedModel
from ml.models.model_specs import deferred_class, family_class
from ml.registry.artifacts import DamagedFileError, atomic_folder, sha256_of, write_json
from ml.registry.model_card import FORMAT_VERSION, ModelCard, ModelFile
from ml.registry.reference_embeddings import REFERENCE_FILE, Reference

_LOG = logging.getLogger(__name__)
_CARD_FILE: Final = "card.json"
_KEPT_VERSIONS: Final = 2
_REFERENCES: Final[WeakValueDictionary[str, Reference]] = WeakValueDictionary()


class RegistryError(UserError):
    """A model cannot be registered, found or loaded; the message says why and what to do."""


class UnknownModelError(RegistryError):
    """There is no such model."""


class Registry:
    """The models of one database and one folder.

    Args:
        database: the database whose ``Models`` collection holds the cards.
        models_dir: folder of the model files; ``<models_dir>/<name>/<version>/``.
    """

    def __init__(self, database: Database[dict[str, Any]], models_dir: Path) -> None:
        self._models = database[schema.MODELS]
        self.models_dir = models_dir

    def register(self, model: ServedModel, reference: Reference | None = None) -> ModelCard:
        """Write a model's files, then make its card the one that is served.

        The card's ``files`` are filled in here. A kill or a full disk at any point leaves the former
        version in place and in use.

        Args:
            model: the trained model with its card.
            reference: embeddings of the dataset's images.

        Returns:
            The card as registered.

        Raises:
            RegistryError: the files could not be written.
        """
        card = model.card
        folder = self.models_dir / card.name / card.version
        try:
            with atomic_folder(folder) as temporary:
                names = model.save(temporary)
                if reference is not None:
                    names.append(reference.save(temporary))
                card.files = [_describe(temporary / name) for name in names]
                write_json(temporary / _CARD_FILE, card.model_dump(mode="json"))
        except OSError as error:
            raise RegistryError(
                f"{card.name} {card.version} could not be written to {self.models_dir}: {error}. "
                "The version registered before, if any, stays in use"
            ) from error
        # Replaced, not merged: a field that only an earlier version's card had would make this one invalid.
        self._models.replace_one({"_id": card.name}, card.model_dump(), upsert=True)
        self._prune(card.name, keep=card.version)
        return card

    def set_metrics(self, card: ModelCard, split: str, metrics: dict[str, dict[str, Any]]) -> None:
        """Put the metrics of a split on a registered card, in the database and beside the files.

        Figures that stood there for the split are replaced.

        Args:
            card: of the version that was scored.
            split: test, dev, cv or seeds.
            metrics: per task.

        Raises:
            RegistryError: another version was registered meanwhile, or the files cannot be written.
        """
        self._set(card, f"metrics.{split}", metrics)

    def set_retrieval(self, card: ModelCard, split: str, figures: dict[str, Any]) -> None:
        """Put the retrieval figures of a split on a registered card, as ``set_metrics`` does metrics."""
        self._set(card, f"retrieval.{split}", figures)

    def _set(self, card: ModelCard, field: str, value: dict[str, Any]) -> None:
        updated = self._models.update_one({"_id": card.name, "version": card.version}, {"$set": {field: value}})
        if not updated.matched_count:
            raise RegistryError(f"{card.name} was retrained while {card.version} was scored; evaluate it again")
        try:
            with atomic_write(model_folder(card, self.models_dir) / _CARD_FILE) as path:
                write_json(path, self.get(card.name).model_dump(mode="json"))
        except OSError as error:
            raise RegistryError(
                f"the card of {card.name} could not be written to {self.models_dir}: {error}"
            ) from error

    def get(self, name: str) -> ModelCard:
        """The card of a registered model.

        Raises:
            UnknownModelError: there is no such model.
            RegistryError: the card is from another version of this software.
        """
        document = self._models.find_one({"_id": name})
        if document is None:
            registered = ", ".join(sorted(self._models.distinct("_id"))) or "none yet"
            raise UnknownModelError(f"no model {name!r} is registered; registered are: {registered}")
        return parse_card(document)

    def cards(self) -> Iterable[ModelCard]:
        """The cards of all registered models that this version can read, by name."""
        for document in self._models.find().sort("_id", 1):
            try:
                yield parse_card(document)
            except RegistryError as error:
                _LOG.warning("%s", error)

    @staticmethod
    def ranked(task: str, cards: Iterable[ModelCard]) -> list[ModelCard]:
        """The models that answer a task from an image, the one with the best dev accuracy first.

        Args:
            task: a key of ``ml.dataset.labels.TASKS``.
            cards: of the models to rank.
        """
        able = [card for card in cards if card.can_serve(task)]
        return sorted(able, key=lambda card: (card.score(task) or 0.0, card.name), reverse=True)

    def load(self, name: str) -> ServedModel:
        """A registered model with its weights.

        Raises:
            UnknownModelError: there is no such model.
            RegistryError: its files are not what was registered.
        """
        return load_model(self.get(name), self.models_dir)

    def _prune(self, name: str, keep: str) -> None:
        # The version before stays, for a service that is just now loading it.
        versions = sorted(
            (path for path in (self.models_dir / name).iterdir() if not path.name.startswith(".")),
            key=lambda path: path.stat().st_mtime,
        )
        for path in versions[:-_KEPT_VERSIONS]:
            if path.name != keep:
                shutil.rmtree(path, ignore_errors=True)


def _describe(path: Path) -> ModelFile:
    return ModelFile(name=path.name, sha256=sha256_of(path), bytes=path.stat().st_size)


def parse_card(document: dict[str, Any]) -> ModelCard:
    """The card in a document of ``Models`` or a card.json.

    Raises:
        RegistryError: the card is from another version of this software.
    """
    format_version = document.get("format_version")
    name = document.get("name", "a model")
    if format_version != FORMAT_VERSION:
        raise RegistryError(
            f"the card of {name} has format {format_version!r}, this version reads {FORMAT_VERSION}; train {name} again"
        )
    fields = {key: value for key, value in document.items() if key != "_id"}
    try:
        card = ModelCard.model_validate(fields)
        card.make_preprocess()
    except ValidationError as error:
        raise RegistryError(f"the card of {name} is not valid: {error}; train {name} again") from error
    except (KeyError, TypeError, ValueError) as error:
        raise RegistryError(
            f"the preprocessing of {name} is of another version: {error}; train {name} again"
        ) from error
    return card


def is_complete(card: ModelCard, models_dir: Path) -> bool:
    """Whether every file of a registered model is there at its full size; its content is not read."""
    paths = {model_folder(card, models_dir) / file.name: file.bytes for file in card.files}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def load_model(card: ModelCard, models_dir: Path, *, defer_network: bool = False) -> ServedModel:
    """A model with its weights, after a check of every file against the card.

    Args:
        card: the registered card.
        models_dir: folder of the model files.
        defer_network: read the network of an image model when it is first run; see ``DeferredImageModel``.

    Raises:
        RegistryError: a file is missing, cut or changed, or the family is unknown.
    """
    folder = model_folder(card, models_dir)
    for file in card.files:
        path = folder / file.name
        if not path.is_file():
            raise RegistryError(f"{card.name}: {file.name} is missing from {folder}; train it again")
        if (size := path.stat().st_size) != file.bytes:
            raise RegistryError(
                f"{card.name}: {file.name} has {size} bytes instead of {file.bytes}: it was cut; train it again"
            )
        if sha256_of(path) != file.sha256:
            raise RegistryError(f"{card.name}: {file.name} is not what was registered; train it again")
    try:
        family = deferred_class(card.family) if defer_network else family_class(card.family)
    except KeyError:
        raise RegistryError(f"{card.name}: unknown model family {card.family!r}; update this software") from None
    try:
        model = family.load(folder, card)
        if not defer_network and model.has_network:
            _ = model.network  # which a fusion defers by itself
    except DamagedFileError as error:
        raise RegistryError(f"{card.name}: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # The hashes are right, so what the settings say is not what this version's class reads.
        raise RegistryError(
            f"the card of {card.name} is from another version, whose settings this one does not read "
            f"({type(error).__name__}: {error}); train {card.name} again"
        ) from error
    return model


def load_reference(card: ModelCard, models_dir: Path) -> Reference | None:
    """The embeddings registered with a model; None where it has none.

    Raises:
        RegistryError: the file is missing or damaged.
    """
    sha256 = next((file.sha256 for file in card.files if file.name == REFERENCE_FILE), None)
    if sha256 is None:
        return None
    # A fusion and its image half have the same embeddings, which are held once.
    loaded = _REFERENCES.get(sha256)
    if loaded is None:
        try:
            loaded = Reference.load(model_folder(card, models_dir))
        except DamagedFileError as error:
            raise RegistryError(f"{card.name}: {error}") from error
        _REFERENCES[sha256] = loaded
    return loaded


def model_folder(card: ModelCard, models_dir: Path) -> Path:
    """Where the files of a model's version are."""
    return models_dir / card.name / card.version
