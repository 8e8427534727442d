"""Validates the settings that select the model of a task, and says why a model serves."""

from collections.abc import Sequence
from typing import Final, Literal

from ml.registry.model_card import ModelCard

TASKS: Final[tuple[Literal["modality", "location"], ...]] = ("modality", "location")
_REMEDY: Final = "Name another one, or leave it unset for the best on dev."


def setting_name(task: str) -> str:
    """The setting that selects the model of a task."""
    return f"MEDPIX_MODEL_{task.upper()}"


def selection_error(task: str, cards: Sequence[ModelCard], selected: str | None) -> str | None:
    """Why the selected model can never answer a task, in sentences; None where it can, once it is trained.

    Args:
        task: modality or location.
        cards: all registered models; none where the database was not asked.
        selected: the name in the setting.
    """
    if selected is None:
        return None
    from ml.models.model_specs import MODEL_SPECS  # noqa: PLC0415 - takes seconds; most services select no model

    card = next((card for card in cards if card.name == selected), None)
    if card is None:
        if selected in MODEL_SPECS and task in MODEL_SPECS[selected].tasks:
            return None
        reason = "there is no such model" if selected not in MODEL_SPECS else f"this model does not answer {task}"
    elif card.can_serve(task):
        return None
    elif task in card.tasks:
        reason = "this model takes no image, and every request has one"
    else:
        reason = f"this model does not answer {task}"
    registered = [card.name for card in cards if card.can_serve(task)]
    usable = f"Registered for {task}: {', '.join(registered)}."
    if not registered:
        usable = f"Models for {task}: {', '.join(name for name, spec in MODEL_SPECS.items() if task in spec.tasks)}."
    return f"{setting_name(task)}={selected[:80]}: {reason}. {_REMEDY} {usable}"


def selection_reason(task: str, card: ModelCard, ranked: Sequence[ModelCard], selected: str | None) -> str:
    """Why a model serves a task, in words.

    Args:
        task: modality or location.
        card: of the model that serves it.
        ranked: the models that answer the task from an image, the best on dev first.
        selected: the name in the setting.
    """
    if selected == card.name:
        return f"selected by {setting_name(task)}"
    alternatives = [other for other in ranked if other.name != card.name]
    if not alternatives:
        return f"the only registered model that answers {task} from an image"
    reason = f"best accuracy on dev, {card.score(task) or 0.0:.3f}"
    if ranked[0].name != card.name:
        return f"{reason}, of the models that can be loaded; {ranked[0].name} cannot"
    return f"{reason}, before {alternatives[0].name} with {alternatives[0].score(task) or 0.0:.3f}"
