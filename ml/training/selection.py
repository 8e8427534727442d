"""Which models a start trains: by its setting, else by what the machine can do in minutes."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Final, Self

from pymongo.database import Database

from app.core.settings import ConfigurationError
from app.data.schema import TRAINING_CHOICE, TRAINING_RUNS
from ml.models.model_specs import DEFAULTS, MODEL_SPECS
from ml.registry.model_card import now
from ml.training.pretrained import CLIP, RESNET50, RemoteWeights

AUTO: Final = "auto"
# Beside the defaults: with pretrained weights and a GPU, minutes each.
_ON_GPU: Final = ("resnet50-modality", "resnet50-location", "clip-location")
# Frozen embeddings and a head: minutes on a CPU too. Without OpenAI's weights there is nothing to freeze.
_ON_CPU: Final = ("clip-location",)
_BY_GPU: Final = "auto: with a GPU the default models, ResNet50 and CLIP"
_BY_CPU: Final = "auto: on the {device} what trains in minutes; for ResNet50 run `medpix train resnet50-modality`"
_WEIGHTS: Final[dict[str, RemoteWeights]] = {
    "resnet50-modality": RESNET50,
    "resnet50-location": RESNET50,
    "clip-location": CLIP,
}


@dataclass(frozen=True, slots=True)
class TrainingChoice:
    """Which models a start trains, and why.

    Attributes:
        models: names, in the order of their training.
        device: where they are trained: cpu, cuda or mps.
        reason: why these, in a sentence.
        notes: what is left out or trained otherwise than meant, and what to do, in sentences.
        chosen_at: when this was decided.
    """

    models: tuple[str, ...]
    device: str
    reason: str
    notes: tuple[str, ...]
    chosen_at: datetime

    def with_note(self, note: str) -> Self:
        """The choice, with a further note."""
        return replace(self, notes=(*self.notes, note))

    def save(self, database: Database[dict[str, Any]]) -> None:
        """Write the choice where the service reads it."""
        document = asdict(self) | {"state": "done"}  # every document of the collection has a state
        database[TRAINING_RUNS].replace_one({"_id": TRAINING_CHOICE}, document, upsert=True)

    @classmethod
    def load(cls, database: Database[dict[str, Any]]) -> Self:
        """The choice that was saved last."""
        document = database[TRAINING_RUNS].find_one({"_id": TRAINING_CHOICE}, {"_id": 0, "state": 0})
        assert document is not None
        return cls(**document | {"models": tuple(document["models"]), "notes": tuple(document["notes"])})


def check_setting(setting: Sequence[str]) -> None:
    """Refuse a name in MEDPIX_TRAIN that is neither a model nor a task, nor "auto" or "all".

    Raises:
        ConfigurationError: names it, and what is known.
    """
    names = [AUTO, "all", *DEFAULTS, *MODEL_SPECS]
    if unknown := [name for name in setting if name not in names]:
        raise ConfigurationError(
            f"MEDPIX_TRAIN: {unknown[0][:80]!r} is neither a model nor a task; known are: {', '.join(names)}"
        )


def choose_models(setting: Sequence[str], device: str, trained: Collection[str] = ()) -> TrainingChoice:
    """The models of a start; nothing is downloaded, and without a network the answer comes within seconds.

    Args:
        setting: names of models and tasks; "auto" stands for what suits the machine.
        device: type of the device to train on: cpu, cuda or mps.
        trained: models that are usable already: their weights are not looked for.

    Raises:
        ConfigurationError: a name is neither a model nor a task.
    """
    check_setting(setting)
    chosen: dict[str, None] = {}
    notes: list[str] = []
    for name in MODEL_SPECS if "all" in setting else setting:
        if name == AUTO:
            chosen |= dict.fromkeys(name for names in DEFAULTS.values() for name in names)
            further = [name for name in (_ON_GPU if device == "cuda" else _ON_CPU) if name not in chosen]
            chosen |= dict.fromkeys(_with_weights(further, device, trained, notes))
        else:
            chosen |= dict.fromkeys(DEFAULTS.get(name, (name,)))
    reason = f"MEDPIX_TRAIN is {','.join(setting)}"
    if list(setting) == [AUTO]:
        reason = _BY_GPU if device == "cuda" else _BY_CPU.format(device=device)
    return TrainingChoice(tuple(chosen), device, reason, tuple(notes), now())


def _with_weights(names: Sequence[str], device: str, trained: Collection[str], notes: list[str]) -> Iterator[str]:
    """The models that this device trains in minutes with the weights that can be had; the notes say of which not."""
    obtainable: dict[str, bool] = {}
    for name in names:
        remote = _WEIGHTS[name]
        if name not in trained and remote.title not in obtainable:
            obtainable[remote.title] = remote.obtainable
        if name in trained or obtainable[remote.title]:
            yield name
            continue
        lack = f"the weights of {remote.title} are neither cached nor reachable"
        remedy = f"With a copy of them run `medpix train {name} --weights PATH`"
        if device == "cuda":
            yield name
            notes.append(f"{name}: {lack}; {remote.instead}. {remedy}.")
        else:
            notes.append(f"{name} is left out: {lack}. {remedy}; without it {remote.instead} takes longer.")
