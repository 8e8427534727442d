"""Caption-to-image retrieval: how often the image of a caption is among the first that its embedding finds."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from ml.dataset.records import Record, groups
from ml.evaluation.bootstrap import CaseBootstrap
from ml.models.base import Floats

CUTOFFS: Final = (1, 5, 10)
# What counts as found, by its name in the figures.
KINDS: Final = ("image", "caption", "case")
RELEVANT: Final = (
    "Each image's caption is a query. Relevant is the very image (image), any image with the same caption, which no "
    "text tells apart (caption), or any image of the same case (case)."
)


def retrieval(captions: Floats, images: Floats, records: Sequence[Record]) -> dict[str, Any] | None:
    """Recall of caption-to-image retrieval among the images of a split; each image's caption is a query.

    Args:
        captions: embeddings of N captions, length 1, (N, D), rows of NaN where there is none.
        images: embeddings of the N images, length 1, (N, D).
        records: of the N images.

    Returns:
        ``queries``, ``images`` and ``cases``, and per kind of relevant image the recalls at 1, 5 and 10 with their
        95% case-bootstrap intervals (``recall_at``, ``recall_at_95``) and the expected recalls of a random order
        (``random_at``), by cutoff as text. Relevant are, of the kind "image" the very image of the caption; "caption"
        all images with the same caption, which no text tells apart; "case" all images of the caption's case. None
        where no image has a caption.
    """
    queries = np.flatnonzero(~np.isnan(captions).any(axis=1))
    if not len(queries):
        return None
    similarity = captions[queries] @ images.T
    cases = groups(records)
    texts = np.array([record.caption for record in records], dtype=np.str_)
    relevant = {
        "image": np.arange(len(records))[None] == queries[:, None],
        "caption": texts[None] == texts[queries][:, None],
        "case": cases[None] == cases[queries][:, None],
    }
    bootstrap = CaseBootstrap(cases[queries])
    figures: dict[str, Any] = {"queries": len(queries), "images": len(records), "cases": len(np.unique(cases))}
    for kind, matches in relevant.items():
        # How many other images are as similar as the best relevant one, or more: a tie finds nothing.
        best = np.where(matches, similarity, -np.inf).max(axis=1, keepdims=True)
        rank = ((similarity >= best) & ~matches).sum(axis=1)
        counts = matches.sum(axis=1)
        hits_at = {k: (rank < k).astype(np.float64) for k in CUTOFFS}
        figures[kind] = {
            "recall_at": {str(k): float(hits.mean()) for k, hits in hits_at.items()},
            "recall_at_95": {str(k): list(bootstrap.estimate_mean(hits).intervals[0]) for k, hits in hits_at.items()},
            "random_at": {str(k): float(_chance(counts, len(records), k).mean()) for k in CUTOFFS},
            "median_rank": float(np.median(rank) + 1),
        }
    return figures


def _chance(relevant: NDArray[np.int64], total: int, k: int) -> NDArray[np.float64]:
    """The probability that k of ``total`` images drawn at random hold at least one of the relevant ones."""
    k = min(k, total)
    irrelevant = total - relevant
    missed = gammaln(irrelevant + 1.0) - gammaln(np.maximum(irrelevant - k, 0) + 1.0) + gammaln(total - k + 1.0)
    missed -= gammaln(total + 1.0)
    return np.asarray(np.where(irrelevant >= k, 1.0 - np.exp(missed), 1.0), dtype=np.float64)
