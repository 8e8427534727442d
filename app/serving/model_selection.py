"""What is wrong with a setting that names the model of a task."""

from collections.abc import Sequence
from typing import Final

from ml.models.model_specs import MODEL_SPECS
from ml.registry.model_card import ModelCard

_REMEDY: Final = "Name another one, or leave it unset for the best on dev."


def variable(task: str) -> str:
    """The setting that names the model of a task."""
    return f"MEDPIX_MODEL_{task.upper()}"


def pin_fault(task: str, cards: Sequence[ModelCard], pin: str | None) -> str | None:
    """Why the model that a setting names can never answer, in sentences; None where it can, once it is trained.

    Args:
        task: modality or location.
        cards: all registered models.
        pin: the name in the setting.
    """
    if pin is None:
        return None
    card = next((card for card in cards if card.name == pin), None)
    if card is None:
        if pin in MODEL_SPECS and task in MODEL_SPECS[pin].tasks:
            return None
        reason = "there is no such model" if pin not in MODEL_SPECS else f"this model does not answer {task}"
    elif card.can_serve(task):
        return None
    elif task in card.tasks:
        reason = "this model takes no image, and the service is always given one"
    else:
        reason = f"this model does not answer {task}"
    usable = ", ".join(card.name for card in cards if card.can_serve(task)) or "none yet"
    return f"{variable(task)}={pin[:80]}: {reason}. {_REMEDY} Registered for {task}: {usable}."
