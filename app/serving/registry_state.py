"""The registry and the training runs as they were when they were last read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from pymongo.database import Database

from app.core.progress import Progress
from app.serving.model_selection import selection_error
from app.serving.training_status import read_choice, read_progress
from ml.registry.model_card import ModelCard

if TYPE_CHECKING:
    from ml.registry.registry import Registry

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RegistryState:
    """The registry and the training runs at one time.

    Attributes:
        progress: the training runs, newest report first.
        cards: every registered model, by name.
        ranked: per task, the models that answer it from an image, the best first.
        selection_errors: per task, what is wrong with the setting that selects its model; None where nothing is.
        training_choice: which models the last start trains, and why; None before the first.
    """

    progress: list[Progress]
    cards: list[ModelCard]
    ranked: Mapping[str, list[ModelCard]]
    selection_errors: Mapping[str, str | None]
    training_choice: Document | None = None

    @property
    def text_search_card(self) -> ModelCard | None:
        """The model that finds images by words best, by its recall on dev."""
        able = [card for card in self.cards if card.shared_embedding]
        return max(able, key=lambda card: (card.retrieval_score, card.name), default=None)

    @classmethod
    def read(cls, registry: "Registry", database: Database[Document], selected: Mapping[str, str | None]) -> Self:
        """Read them.

        Args:
            registry: of the models.
            database: with the training runs.
            selected: per task, the name of the model that a setting selects; None for the best.

        Raises:
            pymongo.errors.PyMongoError: the database cannot be reached.
        """
        progress = read_progress(database)
        cards = list(registry.cards())
        ranked = {task: registry.ranked(task, cards) for task in selected}
        errors = {task: selection_error(task, cards, name) for task, name in selected.items()}
        return cls(progress, cards, ranked, errors, read_choice(database))
