import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from ml.dataset.labels import IGNORED
from ml.models.base import softmax
from ml.models.lexicon import LEXICON, RegionCounter
from ml.models.text import LinearClassifier, TextFeatures, has_usable_word

TEXTS = ["Axial CT of the brain shows a mass", "MR of the knee: torn meniscus", "Chest CT with a lung nodule", "brain"]


def shares(caption: str) -> dict[str, float]:
    row = RegionCounter().transform([caption])[0, len(LEXICON) :]
    return {region: float(share) for region, share in zip(LEXICON, row, strict=True) if share}


@pytest.mark.parametrize(
    ("caption", "region"),
    [
        ("Sagittal T1 of the TALUS and the navicular", "foot"),
        ("Hydronephrosis with a ureteral stone", "bladder"),
        ("tear of the anterior cruciate ligament, torn menisci", "knee"),
        ("ground-glass opacity of the right upper lobe, bronchiectasis", "lung"),
        ("ground glass opacity", "lung"),
        ("enlarged medial rectus muscle, proptosis", "orbit"),
        ("sella turcica with a suprasellar mass", "pituitary"),
    ],
)
def test_words_count_for_their_region(caption: str, region: str) -> None:
    assert region in shares(caption)


def test_whole_words_do_not_match_inside_others() -> None:
    assert "skull" not in shares("craniotomy")
    assert shares("") == {}


def test_every_stem_of_the_lexicon_can_match() -> None:
    for region, stems in LEXICON.items():
        for stem in stems.split():
            assert region in shares(stem.rstrip("$")), stem


def test_features_come_back_without_pickle() -> None:
    features = TextFeatures.fit(TEXTS)
    again = TextFeatures.restore(features.vocabulary(), features.weights())
    new = ["A mass of the brain and the meniscus", ""]
    assert np.array_equal(features.transform(new).toarray(), again.transform(new).toarray())
    assert features.transform(TEXTS).shape[0] == 4
    # The keys of the files, which models registered before have too.
    assert features.vocabulary().keys() == {"words", "letters", "lexicon"}
    assert features.weights().keys() == {"words.idf", "letters.idf"}
    with pytest.raises(ValueError, match=r".+"):
        TextFeatures.restore(features.vocabulary() | {"words": ["brain"]}, features.weights())


@pytest.mark.parametrize("classes", [2, 3])
def test_the_classifier_answers_as_scikit_learn(classes: int) -> None:
    random = np.random.default_rng(0)
    features = sparse.csr_matrix(random.normal(size=(60, 5)))
    targets = random.integers(0, classes, 60)
    weights = random.random(60)
    ours = LinearClassifier.fit(features, targets, weights, classes, strength=3.0, balanced=False)
    theirs = LogisticRegression(C=3.0, max_iter=1000).fit(features, targets, sample_weight=weights)
    assert softmax(ours.log_probabilities(features)) == pytest.approx(theirs.predict_proba(features), abs=1e-4)


def test_classes_without_example_get_next_to_nothing() -> None:
    features = sparse.csr_matrix(np.eye(4))
    targets = np.array([1, 3, IGNORED, 3])
    model = LinearClassifier.fit(features, targets, np.ones(4), 5, strength=1.0, balanced=True)
    probabilities = np.exp(model.log_probabilities(features))
    assert probabilities[:, [0, 2, 4]].max() < 1e-6
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(4))


def test_a_single_class_is_always_the_answer() -> None:
    features = sparse.csr_matrix(np.eye(2))
    model = LinearClassifier.fit(features, np.array([1, 1]), np.ones(2), 3, strength=1.0, balanced=False)
    assert np.exp(model.log_probabilities(features))[:, 1] == pytest.approx(np.ones(2), abs=1e-6)


@pytest.mark.parametrize(
    ("text", "usable"),
    [
        ("Axial CT of the liver", True),
        ("fractura del menisco", True),  # a stem of the lexicon
        ("stone", True),  # in the vocabulary alone
        ("", False),
        ("CT image 3", False),
        ("Figure 2a", False),
        ("Schnitt durch das Gehirn", False),
        ("\U0001f600\U0001f600", False),
        ("12 34", False),
    ],
)
def test_a_text_without_a_word_that_says_something_is_told(text: str, usable: bool) -> None:
    features = TextFeatures.fit(["image of a stone", "CT image 3 with mass", "Figure 1: the the image"])
    assert features.has_known_words([text]).tolist() == [usable]


@pytest.mark.parametrize(
    ("text", "usable"),
    [("CT image 3", False), ("😀 😀", False), ("", False), ("глиома", False), ("Axial T2 of the brain", True)],
)
def test_a_model_that_knows_all_words_leaves_out_captions_without_one(text: str, usable: bool) -> None:
    assert has_usable_word([text]).tolist() == [usable]
