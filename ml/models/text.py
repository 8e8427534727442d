"""Features of captions and reports, and linear classifiers on them, stored without pickle."""

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from ml.dataset.labels import IGNORED
from ml.models.lexicon import LEXICON, RegionCounter

_WORDS = {"ngram_range": (1, 2), "sublinear_tf": True, "token_pattern": r"(?u)\b\w+\b", "dtype": np.float32}
_CHARACTERS = {"analyzer": "char_wb", "ngram_range": (3, 5), "sublinear_tf": True, "dtype": np.float32}
_WORD: Final = re.compile(r"[^\W\d_]{3,}")
# Words of a caption that say nothing of what the image shows; with the stop words, "CT image 3" has no other.
_GENERIC: Final = ENGLISH_STOP_WORDS | {
    *("case", "figure", "figures", "frame", "image", "images", "mri", "photo", "picture", "scan", "scans"),
    *("series", "slice", "slices", "view", "views"),
}
_REGIONS: Final = RegionCounter()
# The score of a class that training never showed: probability of about 1e-9 beside any other.
_NEVER = -20.0


def has_usable_word(
    texts: Sequence[str], regions: RegionCounter | None = None, vocabulary: Set[str] | None = None
) -> NDArray[np.bool_]:
    """Which of N captions have a word that says something of what the image shows; others count as no caption.

    Args:
        texts: captions.
        regions: counter of a lexicon, one of whose words is enough; by default that of this version.
        vocabulary: the words that a model knows; None for a model that reads any word of the Latin alphabet. Such a
            model takes a sentence in another language for a caption.
    """
    usable = np.zeros(len(texts), dtype=np.bool_)
    for row, text in enumerate(texts):
        words = set(_WORD.findall(text.lower())) - _GENERIC
        if vocabulary is None:
            usable[row] = any(word.isascii() for word in words)
        else:
            usable[row] = not vocabulary.isdisjoint(words)
    return np.asarray(usable | ((regions or _REGIONS).transform(texts).sum(axis=1) > 0))


class TextFeatures:
    """TF-IDF of words and of character n-grams, beside counts of words by region of the body.

    Args:
        words: fitted vectorizer of words and pairs of words.
        characters: fitted vectorizer of n-grams of three to five characters within words; "letters" in the files.
        regions: counter of the words of a lexicon.
    """

    def __init__(self, words: TfidfVectorizer, characters: TfidfVectorizer, regions: RegionCounter) -> None:
        self._words, self._characters, self._regions = words, characters, regions

    @classmethod
    def fit(cls, texts: Sequence[str], min_count: int = 1) -> Self:
        """Learn vocabulary and document frequencies.

        Args:
            texts: training texts.
            min_count: least number of texts with a term.
        """
        words = TfidfVectorizer(min_df=min_count, **_WORDS).fit(texts)
        characters = TfidfVectorizer(min_df=min_count, **_CHARACTERS).fit(texts)
        return cls(words, characters, RegionCounter())

    def transform(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """Features (N, terms + 2 * regions) of N texts, float32."""
        regions = sparse.csr_matrix(self._regions.transform(texts))
        return sparse.csr_matrix(
            sparse.hstack([self._words.transform(texts), self._characters.transform(texts), regions])
        )

    def has_known_words(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Which of N texts have a word that says something of what the image shows.

        That is a word of the lexicon, or one of the vocabulary that is neither generic nor a stop word.
        Of the 2,050 captions of MedPix 2.0, 13 have none; all read like "CT image 3".
        """
        return has_usable_word(texts, self._regions, self._words.vocabulary_.keys())

    def vocabulary(self) -> dict[str, Any]:
        """The terms in order and the lexicon, as JSON values."""
        return {
            "words": self._words.get_feature_names_out().tolist(),
            "letters": self._characters.get_feature_names_out().tolist(),
            "lexicon": self._regions.lexicon,
        }

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """The inverse document frequencies, (terms,) each."""
        return {
            "words.idf": self._words.idf_.astype(np.float32),
            "letters.idf": self._characters.idf_.astype(np.float32),
        }

    @classmethod
    def restore(cls, vocabulary: Mapping[str, Any], weights: Mapping[str, NDArray[np.float32]]) -> Self:
        """The features that ``vocabulary`` and ``weights`` describe.

        Raises:
            KeyError: a part is missing.
            ValueError: terms and frequencies differ in number.
        """
        words = TfidfVectorizer(vocabulary=vocabulary["words"], **_WORDS)
        characters = TfidfVectorizer(vocabulary=vocabulary["letters"], **_CHARACTERS)
        words.idf_ = weights["words.idf"]
        characters.idf_ = weights["letters.idf"]
        return cls(words, characters, RegionCounter(vocabulary.get("lexicon", LEXICON)))


@dataclass(frozen=True, slots=True)
class LinearClassifier:
    """Softmax regression.

    Attributes:
        weights: float32, (classes, features).
        bias: float32, (classes,).
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]

    @classmethod
    def fit(
        cls,
        features: sparse.csr_matrix,
        targets: NDArray[np.int64],
        sample_weights: NDArray[np.float64],
        classes: int,
        *,
        strength: float,
        balanced: bool,
    ) -> Self:
        """Fit by maximum likelihood with an L2 penalty.

        Args:
            features: (N, features).
            targets: (N,); rows with ``IGNORED`` are left out.
            sample_weights: (N,).
            classes: number of classes, also of those that do not occur.
            strength: inverse of the penalty, scikit-learn's C.
            balanced: weigh the classes equally.
        """
        keep = targets != IGNORED
        weights = np.zeros((classes, features.shape[1]), dtype=np.float32)
        bias = np.full(classes, _NEVER, dtype=np.float32)
        present = np.unique(targets[keep])
        bias[present] = 0.0
        if len(present) > 1:
            model = LogisticRegression(C=strength, max_iter=1000, class_weight="balanced" if balanced else None)
            model.fit(features[keep], targets[keep], sample_weight=sample_weights[keep])
            # With two classes scikit-learn keeps one row: the score of the second over the first.
            rows = present if len(present) > 2 else present[1:]
            weights[rows], bias[rows] = model.coef_, model.intercept_
        return cls(weights, bias)

    def log_probabilities(self, features: sparse.csr_matrix) -> NDArray[np.float32]:
        """Log-probabilities (N, classes)."""
        scores = np.asarray(features @ self.weights.T, dtype=np.float64) + self.bias
        scores -= scores.max(axis=1, keepdims=True)
        return np.asarray(scores - np.log(np.exp(scores).sum(axis=1, keepdims=True)), dtype=np.float32)
