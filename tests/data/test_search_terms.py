"""The words of texts and queries."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import snowballstemmer

from app.data import search_terms

_ENDINGS = ("", "s", "ed", "ing", "ation", "ally", "ness", "ities")


@pytest.fixture
def quick_switches() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    search_terms.stem.cache_clear()
    yield
    search_terms.stem.cache_clear()
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("quick_switches")
def test_a_stem_is_that_of_its_own_word_whichever_threads_ask() -> None:
    words = [f"h{vowel}{middle}m{ending}" for vowel in "aeiou" for middle in "bcdfglnprstvz" for ending in _ENDINGS]
    stemmer = snowballstemmer.stemmer("english")
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            search_terms.stem.cache_clear()
            assert list(pool.map(search_terms.stem, words)) == [stemmer.stemWord(word) for word in words]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("oedema", "edema"),
        ("gastrooesophageal", "gastroesophageal"),
        ("diarrhoea", "diarrhea"),
        ("Haematomas", "hematoma"),
        ("tumours", "tumor"),
        ("fibres", "fiber"),
        ("grey", "gray"),
        ("localised", "localizing"),
        ("metastases", "metastasis"),
        ("diagnosis", "diagnoses"),
        ("emboli", "embolus"),
        ("foci", "focus"),
        ("vertebrae", "vertebra"),
        ("diverticula", "diverticulum"),
    ],
)
def test_spellings_and_plurals_of_a_word_have_one_stem(one: str, other: str) -> None:
    assert search_terms.stem(one) == search_terms.stem(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("testis", "test"), ("basis", "base"), ("complex", "complication"), ("contour", "contort"), ("area", "are")],
)
def test_words_that_only_look_alike_keep_their_stems(one: str, other: str) -> None:
    assert search_terms.stem(one) != search_terms.stem(other)
