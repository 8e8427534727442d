"""Text-to-image search: a dual encoder's text encoder against the embeddings of the dataset's images, in memory."""

from typing import Final

import numpy as np

from app.core.exceptions import UnavailableError, UnprocessableError
from app.serving.admission import enforce_deadline
from app.serving.daemon_pool import DaemonThreadPool
from ml.models.base import ServedModel
from ml.registry.model_card import ModelCard
from ml.registry.reference_embeddings import Reference

# A query takes some 20 ms; more than a second of them is refused.
_MAX_WAITING: Final = 50


class TextSearch:
    """Ranks the images of the dataset by their similarity to a text.

    The product of one embedding with those of thousands of images takes less than a millisecond.

    Args:
        model: embeds captions in the space of its images (``card.shared_embedding``).
        reference: the embeddings of the images, computed when the model was trained.
    """

    def __init__(self, model: ServedModel, reference: Reference) -> None:
        self._model, self._reference = model, reference
        self._waiting = 0
        self._thread = DaemonThreadPool(1, f"text-{model.card.name}")

    @property
    def card(self) -> ModelCard:
        """The model's card."""
        return self._model.card

    async def rank(self, text: str, deadline: float) -> list[tuple[str, float]]:
        """All images that the model knows, the most similar first.

        Args:
            text: in words.
            deadline: on the clock of ``time.perf_counter``.

        Returns:
            (image, cosine similarity) pairs.

        Raises:
            ApiError: too many searches wait, the deadline passed, or the text has no words.
        """
        if self._waiting >= _MAX_WAITING:
            raise UnavailableError("Too many searches wait for the model. Try again later.", retry_after_s=2)
        self._waiting += 1
        try:
            async with enforce_deadline(deadline):
                return await self._thread.run(self._rank, text)
        finally:
            self._waiting -= 1

    def stop(self) -> None:
        """End the thread when its work is done."""
        self._thread.shutdown(wait=False)

    def _rank(self, text: str) -> list[tuple[str, float]]:
        embedded = self._model.embed_captions([text])
        if embedded is None or bool(np.isnan(embedded).any()):
            raise UnprocessableError("The text has no words. Describe what the image shows.")
        return self._reference.nearest(embedded[0], len(self._reference.images))
