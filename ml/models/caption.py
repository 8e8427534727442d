"""Location from the caption alone: TF-IDF, an anatomical lexicon and softmax regression."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import numpy as np
from numpy.typing import NDArray

from ml.dataset import labels
from ml.dataset.records import Record, RecordsError, groups, targets
from ml.models.base import Floats, InputError, Outputs, ServedModel, softmax
from ml.models.text import LinearClassifier, TextFeatures
from ml.registry.artifacts import DamagedFileError, read_arrays, read_json, write_arrays, write_json
from ml.registry.model_card import ModelCard

if TYPE_CHECKING:
    from ml.training.context import Context

NAME: Final = "caption-location"
FAMILY: Final = "caption"
WEIGHTS_FILE: Final = "caption.safetensors"
VOCABULARY_FILE: Final = "vocabulary.json"
# The service takes captions up to 100 kB; the dataset's longest has 1,185 characters.
MAX_CHARACTERS: Final = 4000


@dataclass(frozen=True, slots=True)
class CaptionSettings:
    """How to fit the caption model.

    Attributes:
        strength: inverse L2 penalty.
        case_weight: exponent p of the weight (captions of the case)^-p.
        report_weight: weight of a text of a training case's report beside its captions; 0 for none.
        min_count: least number of texts with a term of the vocabulary.
    """

    strength: float = 3.0
    case_weight: float = 0.5
    report_weight: float = 0.3
    min_count: int = 2


class CaptionModel(ServedModel):
    """Location and location category from the caption.

    ``encode_captions`` gives the log-probabilities of both tasks side by side; ``combine`` ignores
    images, and answers an item without caption with the frequencies of the classes in training.

    Args:
        card: what is known about the model.
        features: fitted text features.
        classifiers: one per task.
    """

    combines_any_outputs = True

    def __init__(self, card: ModelCard, features: TextFeatures, classifiers: dict[str, LinearClassifier]) -> None:
        super().__init__(card)
        self.features, self.classifiers = features, classifiers

    def encode_captions(self, captions: Sequence[str | None]) -> Floats:
        """Log-probabilities (N, 21 + 5), NaN where there is no caption or none of its words is known."""
        texts = [clean(caption) for caption in captions]
        features = self.features.transform(texts)
        encoded = np.hstack([self.classifiers[task].log_probabilities(features) for task in labels.LOCATION_TASKS])
        encoded[~self.features.has_known_words(texts)] = np.nan
        return np.asarray(encoded, dtype=np.float32)

    def combine(self, image_out: Outputs | None, caption_out: Floats | None) -> dict[str, Floats]:
        """Calibrated probabilities from the captions; images are ignored.

        Raises:
            InputError: there are no captions.
        """
        del image_out
        if caption_out is None:
            raise InputError(f"{self.card.name} needs a caption")
        prior = np.concatenate([self.card.settings["log_prior"][task] for task in labels.LOCATION_TASKS])
        parts = split_tasks(np.where(np.isnan(caption_out), prior, caption_out))
        return {task: softmax(parts[task], self.card.temperature[task]) for task in self.card.tasks}

    def save(self, folder: Path) -> list[str]:
        """Write weights, vocabulary and lexicon."""
        save_text_model(folder, self.features, self.classifiers)
        return [WEIGHTS_FILE, VOCABULARY_FILE]

    @classmethod
    def load(cls, folder: Path, card: ModelCard) -> Self:
        """The model that ``save`` wrote."""
        return cls(card, *load_text_model(folder))

    def count_parameters(self) -> int:
        """The number of trained values."""
        return sum(item.weights.size + item.bias.size for item in self.classifiers.values())


def clean(caption: str | None) -> str:
    """A caption with white space folded and cut to a length that costs little time."""
    return " ".join((caption or "")[:MAX_CHARACTERS].split())


def split_tasks(encoded: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """The columns (N, 21 + 5) of ``encode_captions`` by task."""
    count = len(labels.LOCATIONS)
    return {labels.LOCATION: encoded[:, :count], labels.LOCATION_CATEGORY: encoded[:, count:]}


def save_text_model(folder: Path, features: TextFeatures, classifiers: dict[str, LinearClassifier]) -> None:
    """Write features and classifiers; half precision is finer than what 535 cases can tell."""
    arrays: dict[str, NDArray[np.floating]] = dict(features.weights())
    for task, classifier in classifiers.items():
        arrays[f"{task}.weights"] = classifier.weights.astype(np.float16)
        arrays[f"{task}.bias"] = classifier.bias
    write_arrays(folder / WEIGHTS_FILE, arrays)
    write_json(folder / VOCABULARY_FILE, features.vocabulary())


def load_text_model(folder: Path) -> tuple[TextFeatures, dict[str, LinearClassifier]]:
    """What ``save_text_model`` wrote.

    Raises:
        DamagedFileError: a file is missing, cut or of another model.
    """
    arrays, _ = read_arrays(folder / WEIGHTS_FILE)
    try:
        features = TextFeatures.restore(read_json(folder / VOCABULARY_FILE), arrays)
        classifiers = {
            task: LinearClassifier(
                arrays[f"{task}.weights"].astype(np.float32), arrays[f"{task}.bias"].astype(np.float32)
            )
            for task in labels.LOCATION_TASKS
        }
    except (KeyError, ValueError) as error:
        raise DamagedFileError(f"{WEIGHTS_FILE} and {VOCABULARY_FILE} do not belong together") from error
    return features, classifiers


def training_texts(
    records: Sequence[Record], settings: CaptionSettings
) -> tuple[list[str], dict[str, NDArray[np.int64]], NDArray[np.float64]]:
    """Captions, and texts of the same cases' reports, with their targets and weights.

    Returns:
        M texts, per task targets (M,), and weights (M,).
    """
    _, first, inverse, counts = np.unique(groups(records), return_index=True, return_inverse=True, return_counts=True)
    weights = counts[inverse].astype(np.float64) ** -settings.case_weight
    texts = [record.caption for record in records]
    rows = list(range(len(records)))
    extra = []
    if settings.report_weight:
        for row in first.tolist():
            for text in records[row].report:
                texts.append(clean(text))
                rows.append(row)
                extra.append(settings.report_weight)
    task_targets = {task: targets(records, task)[rows] for task in labels.LOCATION_TASKS}
    return texts, task_targets, np.concatenate([weights / weights.mean(), np.array(extra)])


def fit_text_model(
    records: Sequence[Record], settings: CaptionSettings
) -> tuple[TextFeatures, dict[str, LinearClassifier]]:
    """Fit features and one classifier per task on the captions of records.

    Raises:
        RecordsError: they have no words.
    """
    texts, task_targets, weights = training_texts(records, settings)
    try:
        features = TextFeatures.fit(texts, settings.min_count if len(texts) > 100 else 1)
    except ValueError as error:
        raise RecordsError(
            f"the captions and reports of the {len(records)} training images have no words to learn from ({error}); "
            "check the source files, and run `medpix seed` again"
        ) from error
    encoded = features.transform(texts)
    classifiers = {
        task: LinearClassifier.fit(
            encoded,
            task_targets[task],
            weights,
            len(labels.TASKS[task]),
            strength=settings.strength,
            balanced=task == labels.LOCATION_CATEGORY,
        )
        for task in labels.LOCATION_TASKS
    }
    return features, classifiers


def train(context: "Context", settings: CaptionSettings | None = None) -> CaptionModel:
    """Fit the caption model on the training records."""
    from ml.training.context import log_prior  # noqa: PLC0415 - a service on OpenVINO needs no PyTorch

    settings = settings or CaptionSettings()
    context.run.update(0.05, "fitting the caption model")
    features, classifiers = fit_text_model(context.train, settings)
    prior = {task: log_prior(context.train, task).tolist() for task in labels.LOCATION_TASKS}
    card = context.draft_card(
        NAME,
        FAMILY,
        tasks=labels.LOCATION_TASKS,
        inputs=("caption",),
        preprocess=None,
        settings={"fit": asdict(settings), "log_prior": prior},
    )
    return CaptionModel(card, features, classifiers)
