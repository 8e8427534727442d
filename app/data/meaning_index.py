"""Sentence embeddings of the cases and captions, compared with the embedding of a query."""

import hashlib
import logging
import os
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from app.core.files import atomic_write
from app.data.fields import CASE_FIELDS, IMAGE_FIELDS, pick
from app.data.text_encoder import DIMENSIONS, WEIGHTS_SHA256, Embeddings, TextEncoder

Document = dict[str, Any]
logger = logging.getLogger(__name__)

# A passage each; the encoder reads the first 128 tokens of it. Title and diagnosis are the same text in nearly all
# cases, so that one of them and the topic's title stand for both.
PASSAGES: Final = (("title", "topic.title"), ("diagnosis",), ("history",), ("findings",), ("topic.disease_discussion",))
# They tell of other diseases and of normal findings too, so that they count a little less: of the discounts tried on
# the queries of benchmarks.search this one finds more cases by their history and no fewer by lay terms.
OTHER_PASSAGES: Final = (("exam",), ("discussion",))
_DISCOUNT: Final = 0.06
_BATCH: Final = 64
_BACKGROUND_NICENESS: Final = 10


class StoppedError(Exception):
    """The computation was told to stop."""


@dataclass(slots=True)
class Passages:
    """Texts to embed, each once, and what they belong to.

    Attributes:
        texts: the distinct texts.
        owners: (row of ``texts``, case id, image id or None, discount), an entry for each place of a text; the
            discount is taken off its similarity to a query.
    """

    texts: dict[str, int] = field(default_factory=dict)
    owners: list[tuple[int, str, str | None, float]] = field(default_factory=list)

    def add(self, case: Document, images: Iterable[Document]) -> None:
        """Take the passages of a stored case and the captions of its stored images."""
        for passages, discount in ((PASSAGES, 0.0), (OTHER_PASSAGES, _DISCOUNT)):
            for names in passages:
                parts = dict.fromkeys(filter(None, (pick(case, CASE_FIELDS[name].path) for name in names)))
                self._take(". ".join(parts), case["_id"], None, discount)
        for image in images:
            self._take(pick(image, IMAGE_FIELDS["caption"].path), case["_id"], image["_id"], 0.0)

    def _take(self, text: str | None, case: str, image: str | None, discount: float) -> None:
        if text:
            self.owners.append((self.texts.setdefault(text, len(self.texts)), case, image, discount))

    def digest(self) -> str:
        """Names the texts and the encoder: embeddings that were stored under it are those of these texts."""
        digest = hashlib.sha256(WEIGHTS_SHA256.encode())
        for text in self.texts:
            digest.update(text.encode() + b"\0")
        return digest.hexdigest()[:16]


class MeaningIndex:
    """Embeddings of passages; a case is as near to a query as its nearest passage."""

    def __init__(self, passages: Passages, embeddings: Embeddings) -> None:
        rows, cases, images, discounts = zip(*passages.owners, strict=True) if passages.owners else ((), (), (), ())
        self._rows = np.array(rows, np.int64)
        self._cases, inverse = np.unique(np.array(cases, object), return_inverse=True)
        self._case_of: npt.NDArray[np.int64] = inverse.astype(np.int64)
        self._images = images
        self._places = np.array([row for row, image in enumerate(images) if image is not None], np.int64)
        self._discounts = np.array(discounts, np.float32)
        self._embeddings = embeddings

    def rank(self, query: Embeddings) -> tuple[list[tuple[str, float]], Mapping[str, tuple[str, float]]]:
        """Every case by its similarity, best first, and the nearest image of each case that has a caption.

        Args:
            query: the embedding of the query, of shape (384,).
        """
        near = (self._embeddings @ query)[self._rows] - self._discounts
        best = np.full(len(self._cases), -1.0, np.float32)
        np.maximum.at(best, self._case_of, near)
        order = np.argsort(-best, kind="stable")
        ranking = [(str(self._cases[index]), float(best[index])) for index in order]
        by_case = self._places[np.lexsort((-near[self._places], self._case_of[self._places]))]
        _, first = np.unique(self._case_of[by_case], return_index=True)
        images = {
            str(self._cases[self._case_of[row]]): (str(self._images[row]), float(near[row])) for row in by_case[first]
        }
        return ranking, images


def load_or_compute(passages: Passages, folder: Path, stop: threading.Event) -> MeaningIndex:
    """The embeddings of some passages, from the folder where they were stored, or computed and stored there.

    Meant for a thread of its own: it runs on one processor, with lower priority than the requests.

    Raises:
        StoppedError: ``stop`` was set.
        EncoderError: the encoder is not installed.
    """
    file = folder / f"embeddings-{passages.digest()}.npy"
    stored = _read(file, len(passages.texts))
    if stored is not None:
        return MeaningIndex(passages, stored)
    if sys.platform == "linux":  # a thread is a process of its own to the scheduler
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _BACKGROUND_NICENESS)
    encoder = TextEncoder(threads=1)
    texts = list(passages.texts)
    embeddings = np.empty((len(texts), DIMENSIONS), np.float32)
    # Texts of similar length share a batch, so that little of it is padding.
    order = np.array(sorted(range(len(texts)), key=lambda index: len(texts[index])), np.int64)
    for start in range(0, len(order), _BATCH):
        if stop.is_set():
            raise StoppedError
        rows = order[start : start + _BATCH]
        embeddings[rows] = encoder.encode([texts[row] for row in rows])
    try:
        _write(file, embeddings)
    except OSError as error:  # the next start computes them again
        logger.warning("The embeddings of the search could not be stored in %s: %s", folder, error.strerror)
    return MeaningIndex(passages, embeddings)


def _read(file: Path, count: int) -> Embeddings | None:
    try:
        stored = np.load(file, allow_pickle=False)
    except (OSError, ValueError):  # not there, or not whole
        return None
    return stored.astype(np.float32) if stored.shape == (count, DIMENSIONS) else None


def _write(file: Path, embeddings: Embeddings) -> None:
    """Whole or not at all; half precision moves a similarity by less than 0.001."""
    # The suffix of the path would be extended by np.save, that of an open file is not.
    with atomic_write(file, durable=False) as unfinished, unfinished.open("wb") as target:
        np.save(target, embeddings.astype(np.float16))
    for other in file.parent.glob("embeddings-*.npy"):
        if other != file:
            other.unlink(missing_ok=True)
