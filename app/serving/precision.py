"""Precision gate: tf32, bf16 or fp16 are used only if the predictions on the dev split are those of fp32."""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pymongo.errors import PyMongoError

from app.core.exceptions import UserError
from app.core.files import atomic_write
from app.core.settings import Settings
from app.serving.backends.base import Backend, Precision
from app.serving.backends.devices import device_name, lower_precisions, make_backend, software
from ml.dataset.image_loading import load_images
from ml.dataset.preprocess import Preprocess
from ml.dataset.records import Record, snapshot_hash
from ml.models.base import Floats, Outputs, ServedModel
from ml.models.predict_records import captions_of
from ml.registry.artifacts import write_json

logger = logging.getLogger(__name__)

LoadRecords = Callable[[], Sequence[Record]]

MAX_SHIFT: Final = 0.02
# Classes this close in fp32 are as good as equal: which of them comes first is chance.
_TIE: Final = 0.001
_BATCH: Final = 8


@dataclass(frozen=True, slots=True)
class PrecisionChoice:
    """The precision of a model, and why.

    Attributes:
        precision: fp32, tf32, bf16 or fp16.
        reason: a sentence for people.
    """

    precision: Precision
    reason: str


@dataclass(frozen=True, slots=True)
class Parity:
    """How far the answers of two precisions are apart on the same images.

    Attributes:
        images: compared.
        changed: answers with another label, ties left out.
        shift: largest difference between two probabilities of one class; infinite where outputs are not finite.
    """

    images: int
    changed: int
    shift: float

    @property
    def holds(self) -> bool:
        """Whether the lower precision gives the same predictions."""
        return self.changed == 0 and self.shift <= MAX_SHIFT

    def describe(self, precision: Precision) -> str:
        """One sentence about the lower precision, for people."""
        if not math.isfinite(self.shift):
            return f"On {self.images} dev images outputs in fp32 or {precision} are not finite."
        changed = "no label" if not self.changed else f"{self.changed} label{'s' * (self.changed > 1)}"
        return (
            f"On {self.images} dev images {precision} changes {changed} and moves a probability by "
            f"{self.shift:.4f} at most (allowed: none, {MAX_SHIFT})."
        )


def compare(model: ServedModel, full: Outputs, low: Outputs, captions: Sequence[str | None]) -> Parity:
    """How far the answers of a model are apart when its network ran in two precisions.

    Args:
        model: combines the outputs; asked with the captions and, since callers may leave them out, without.
        full: outputs of the network in fp32, N rows each.
        low: outputs in the lower precision, of the same images.
        captions: N, one per image.
    """
    if not all(np.isfinite(values).all() for values in (*full.values(), *low.values())):
        return Parity(len(captions), 0, math.inf)  # what follows would pass over NaN
    changed, shift = 0, 0.0
    for encoded in _encoded_captions(model, captions):
        expected, actual = model.combine(full, encoded), model.combine(low, encoded)
        for task, probabilities in expected.items():
            chosen = actual[task].argmax(axis=1)
            lost = probabilities.max(axis=1) - np.take_along_axis(probabilities, chosen[:, None], axis=1)[:, 0]
            changed += int((lost > _TIE).sum())
            shift = max(shift, float(np.abs(probabilities - actual[task]).max()))
    return Parity(len(captions), changed, shift)


def _encoded_captions(model: ServedModel, captions: Sequence[str | None]) -> list[Floats | None]:
    """The text encoder's outputs to compare with: none, and those of the captions where the model takes them."""
    return [None] if "caption" not in model.inputs else [None, model.encode_captions(captions)]


def select_backend(
    model: ServedModel, settings: Settings, weights: str, dev: LoadRecords | None
) -> tuple[Backend, PrecisionChoice]:
    """The backend of a model, in a lower precision where MEDPIX_PRECISION allows it and the dev split agrees.

    The comparison is made when a model is first served on a machine, and kept in the cache folder.

    Args:
        model: with a network.
        settings: device, precision and cache folder.
        weights: hash of the network's weights.
        dev: reads the dev split; None where there is none.

    Raises:
        RuntimeError: the device is not there.
    """
    assert model.has_network
    preprocess = model.preprocess
    assert preprocess is not None
    full = make_backend(model, preprocess, settings, weights)
    if settings.precision == "fp32":
        return full, PrecisionChoice("fp32", "MEDPIX_PRECISION=fp32.")
    if full.device == "cpu" and full.name != "openvino":
        return full, PrecisionChoice("fp32", "OpenVINO cannot run this network; PyTorch on the CPU computes in fp32.")
    candidates = lower_precisions(full.device)
    if not candidates:
        return full, PrecisionChoice("fp32", "This device does not compute in bf16.")
    try:
        records = dev() if dev is not None else ()
    except (UserError, PyMongoError) as error:
        return full, PrecisionChoice("fp32", f"{candidates[0]} was not compared: the dev split cannot be read: {error}")
    if not records:
        return full, PrecisionChoice("fp32", f"{candidates[0]} was not compared: there is no dev split.")
    backend, reasons = full, []
    for lower in candidates:
        make = partial(_in_precision, lower, model, preprocess, settings, weights)
        try:
            parity = _compared(model, full, lower, make, records, settings)
            reasons.append(parity.describe(lower))
            if parity.holds:
                backend = make()
                break
        except Exception as error:  # whatever it is, such as no memory for a second copy: the full precision serves
            expected = isinstance(error, UserError)
            logger.warning("%s cannot compute in %s", model.card.name, lower, exc_info=not expected)
            cause = str(error).partition("\n")[0] or repr(error)
            reasons.append(f"{lower} is not used: {cause}")
    choice = PrecisionChoice(backend.precision, " ".join(reasons))
    logger.info("%s computes in %s: %s", model.card.name, choice.precision, choice.reason)
    return backend, choice


def _compared(
    model: ServedModel,
    full: Backend,
    lower: Precision,
    make: Callable[[], Backend],
    records: Sequence[Record],
    settings: Settings,
) -> Parity:
    card = model.card
    # The version stands for the temperatures, which move probabilities.
    machine = (full.name, device_name(full.device), software())
    parts = (card.sha256, card.version, lower, *machine, snapshot_hash(records), MAX_SHIFT, _TIE)
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    path = settings.home / "cache" / "precision" / f"{key}.json"
    parity = _read(path)
    if parity is None:
        parity = _measure(model, full, make(), records)
        with suppress(OSError):  # a disk that is full or read-only costs time, not the service
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary:
                write_json(temporary, asdict(parity))
    return parity


def _in_precision(
    lower: Precision, model: ServedModel, preprocess: Preprocess, settings: Settings, weights: str
) -> Backend:
    """The backend in a lower precision.

    Raises:
        UserError: what runs networks there cannot compute it; ``make_backend`` falls back to fp32 then.
    """
    backend = make_backend(model, preprocess, settings, weights, lower)
    if backend.precision != lower:
        raise UserError("the network cannot be run in it on this machine.")
    return backend


def _read(path: Path) -> Parity | None:
    try:
        return Parity(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _measure(model: ServedModel, full: Backend, low: Backend, records: Sequence[Record]) -> Parity:
    assert model.preprocess is not None
    pixels = load_images(records, model.preprocess)
    return compare(model, _run(full, pixels), _run(low, pixels), captions_of(records))


def _run(backend: Backend, pixels: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    parts: list[Mapping[str, NDArray[Any]]] = [
        backend.run(pixels[start : start + _BATCH]) for start in range(0, len(pixels), _BATCH)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
